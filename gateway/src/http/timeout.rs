//! The time that clients give their requests.

use std::time::Duration;

use http::{HeaderMap, HeaderName};

use crate::mt1::DaemonError;

/// The time that a request may take, in seconds.
const REQUEST_TIMEOUT: HeaderName = HeaderName::from_static("x-request-timeout");

/// Returns the time that a client gives its request (`X-Request-Timeout`, in seconds).
pub fn stated_timeout(headers: &HeaderMap) -> Result<Option<Duration>, DaemonError> {
    let Some(value) = headers.get(REQUEST_TIMEOUT) else { return Ok(None) };
    let text = value.to_str().unwrap_or_default().trim();
    let seconds: Option<f64> = text.parse().ok().filter(|&seconds| seconds > 0.0);
    match seconds.map(|seconds| Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)) {
        Some(timeout) => Ok(Some(timeout)),
        None => Err(DaemonError::invalid(format!("X-Request-Timeout is not a number of seconds over 0: {text:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn timeouts_are_seconds_over_0() {
        let read = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(REQUEST_TIMEOUT, HeaderValue::from_static(value));
            stated_timeout(&headers)
        };
        assert_eq!(stated_timeout(&HeaderMap::new()), Ok(None));
        assert_eq!(read("1.5"), Ok(Some(Duration::from_millis(1500))));
        assert_eq!(read("1e300"), Ok(Some(Duration::MAX)));
        for wrong in ["0", "-1", "", "NaN", "soon"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
