//! The limit of file descriptors: each connection needs one. What else the gateway does needs some as well: without any, it
//! could not connect to the daemon again, and so would serve nobody.

use serde_json::json;

use crate::log;
use crate::mt1::MAX_REGIONS;
use crate::settings::Settings;

/// Descriptors of an event loop: about ten.
const THREAD_DESCRIPTORS: usize = 16;

/// Descriptors for standard streams, listening sockets, files of certificates, and orders to the daemon.
const OTHER_DESCRIPTORS: usize = 48;

/// Raises the limit of descriptors, and allows fewer connections than configured where it leaves room for no more. Further
/// clients wait until others have gone.
pub fn apply(settings: &mut Settings) {
    let descriptors = raise_limit();
    let allowed = connections_within(descriptors, settings.threads);
    let configured = settings.limits.max_connections;
    if allowed < configured {
        log::warning(
            "the limit of file descriptors allows fewer connections than gateway.max_connections",
            json!({"max_connections": configured, "allowed": allowed, "descriptors": descriptors,
                   "check": "raise the hard limit: LimitNOFILE= in the systemd unit, or ulimit -Hn"}),
        );
        settings.limits.max_connections = allowed;
    }
}

/// Returns for how many connections there are descriptors beside what else needs them, which gets half of all at most.
/// `multitower doctor` has the same rule: `plan_gateway_descriptors` in supervisor/machine/descriptors.py.
fn connections_within(descriptors: u64, threads: usize) -> usize {
    let descriptors = usize::try_from(descriptors).unwrap_or(usize::MAX);
    let reserve = MAX_REGIONS + threads * THREAD_DESCRIPTORS + OTHER_DESCRIPTORS;
    (descriptors - reserve.min(descriptors / 2)).max(1)
}

/// Raises the limit of descriptors as far as this process may: each connection needs one. Returns the limit.
fn raise_limit() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a variable of the type that is stated.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) != 0 {
            return u64::MAX; // not known
        }
        let soft = limit.rlim_cur;
        limit.rlim_cur = limit.rlim_max;
        if soft < limit.rlim_max && libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) != 0 {
            return soft;
        }
    }
    limit.rlim_cur
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_left_for_what_else_needs_them() {
        for (descriptors, threads, allowed) in [
            (1 << 20, 1, (1 << 20) - 128),
            (1024, 1, 896),
            (1024, 4, 848),
            (1024, 1000, 512),
            (200, 1, 100),
            (1, 1, 1),
            (0, 1, 1),
        ] {
            assert_eq!(connections_within(descriptors, threads), allowed, "{descriptors} {threads}");
        }
        assert!(connections_within(u64::MAX, 1) > 1 << 40, "no limit");
    }
}
