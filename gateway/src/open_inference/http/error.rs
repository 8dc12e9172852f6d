//! Errors as Triton forms them over HTTP.

use ::http::{HeaderValue, StatusCode, header};

use crate::http::{Response, error_response as respond};
use crate::mt1::{Code, DaemonError};

/// Returns the response to a request that failed.
pub fn error_response(error: &DaemonError) -> Response {
    respond(error, StatusCode::SERVICE_UNAVAILABLE)
}

/// Returns the response to a method that a path does not have.
pub fn method_not_allowed(allowed: &'static str) -> Response {
    let error = DaemonError::new(Code::Unimplemented, "method_unknown", "Method Not Allowed");
    let mut response = error_response(&error);
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allowed));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::path_unknown;

    #[test]
    fn errors_of_paths_and_methods_have_statuses_of_their_own() {
        let response = method_not_allowed("POST");
        assert_eq!(
            (response.status().as_u16(), &response.headers()["allow"]),
            (405, &HeaderValue::from_static("POST"))
        );
        assert_eq!(error_response(&path_unknown()).status(), 404);
    }

    #[test]
    fn a_full_queue_is_503_as_in_triton() {
        assert_eq!(error_response(&DaemonError::queue_full("m")).status(), 503);
        assert_eq!(error_response(&DaemonError::too_large("body", 1)).status(), 413);
    }
}
