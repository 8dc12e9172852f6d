//! The time that requests get, as MT1 states it.

use std::time::Duration;

/// Returns a timeout as MT1 states it: at least a microsecond.
pub fn microseconds(timeout: Duration) -> u64 {
    u64::try_from(timeout.as_micros()).unwrap_or(u64::MAX).clamp(1, i64::MAX as u64)
}

/// Rounds down to two significant digits of microseconds, or to a five as the third where two would cost too much.
pub fn rounded_down(timeout: Duration) -> Duration {
    let micros = microseconds(timeout);
    let unit = 10u64.pow(micros.ilog10().saturating_sub(1));
    let step = if micros / unit < 20 { unit / 2 } else { unit };
    Duration::from_micros(micros - micros % step.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_lose_less_than_a_twentieth_and_become_few() {
        let table = [(1, 1), (9, 9), (17, 17), (99, 99), (104, 100), (105, 105), (199, 195), (201, 200), (999, 990)];
        for (micros, rounded) in table.into_iter().chain([(1_250_000, 1_250_000), (4_998_731, 4_900_000)]) {
            assert_eq!(rounded_down(Duration::from_micros(micros)), Duration::from_micros(rounded));
        }
        let mut different = std::collections::HashSet::new();
        for micros in (1_000_000..10_000_000).step_by(997) {
            let rounded = rounded_down(Duration::from_micros(micros)).as_micros() as u64;
            assert!(rounded <= micros && rounded * 20 > micros * 19, "{micros}");
            different.insert(rounded);
        }
        assert_eq!(different.len(), 100);
        assert_eq!(rounded_down(Duration::ZERO), Duration::from_micros(1));
        rounded_down(Duration::MAX);
    }
}
