//! Errors over HTTP: `{"error": "…"}` as Triton and TensorFlow Serving have it, and headers for programs.

use http::{HeaderName, HeaderValue, StatusCode, header};

use super::{Response, json_response};
use crate::json::{self, WriteError, write_string};
use crate::mt1::{Code, DaemonError};

/// The code of an error, such as `RESOURCE_EXHAUSTED`: several codes share a status of HTTP.
const CODE: HeaderName = HeaderName::from_static("multitower-code");

/// The reason of an error, such as `queue_full`. Errors of gRPC have it under the same name.
pub const REASON: HeaderName = HeaderName::from_static("multitower-reason");

/// Returns the response to a request that failed.
///
/// `exhausted` is the interface's status for RESOURCE_EXHAUSTED, in which the two differ.
pub fn error_response(error: &DaemonError, exhausted: StatusCode) -> Response {
    let mut response = json_response(status(error, exhausted), error_body(&error.message));
    let headers = response.headers_mut();
    headers.insert(CODE, HeaderValue::from_static(error.code.name()));
    if let Ok(reason) = HeaderValue::from_str(&error.reason) {
        headers.insert(REASON, reason);
    }
    if error.code == Code::Unauthenticated {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if let Some(wait) = error.retry_after() {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(wait.as_secs_f64().ceil().max(1.0) as u64));
    }
    response
}

/// The error for a path that nothing is served at.
pub fn path_unknown() -> DaemonError {
    DaemonError::new(Code::NotFound, "path_unknown", "Not Found")
}

/// Returns the body of an error: `{"error": MESSAGE}`.
pub fn error_body(message: &str) -> Vec<u8> {
    let mut body = b"{\"error\":".to_vec();
    write_string(&mut body, message);
    body.push(b'}');
    body
}

impl From<json::Error> for DaemonError {
    /// A body that cannot be read: UNIMPLEMENTED where no JSON would do, otherwise INVALID_ARGUMENT.
    fn from(error: json::Error) -> Self {
        match error.category() {
            json::Category::Unsupported => DaemonError::unsupported(error.to_string()),
            json::Category::Syntax | json::Category::Value => DaemonError::invalid(error.to_string()),
        }
    }
}

/// The error for an output that cannot be written as JSON; `message` is the interface's own.
///
/// UNIMPLEMENTED if JSON has no values of its datatype, INVALID_ARGUMENT if another form of the output can be asked for,
/// INTERNAL / `output_invalid` if the output itself is wrong.
pub fn unwritable(error: WriteError, message: String) -> DaemonError {
    match error {
        WriteError::Unsupported(_) => DaemonError::unsupported(message),
        WriteError::NotText | WriteError::TooManyLists => DaemonError::invalid(message),
        WriteError::Mismatch => DaemonError::new(Code::Internal, "output_invalid", message),
    }
}

fn status(error: &DaemonError, exhausted: StatusCode) -> StatusCode {
    match (error.code, error.reason.as_str()) {
        // Errors of HTTP itself.
        (_, "method_unknown") => StatusCode::METHOD_NOT_ALLOWED,
        (Code::ResourceExhausted, "too_large") => StatusCode::PAYLOAD_TOO_LARGE,
        (Code::DeadlineExceeded, "body_timeout") => StatusCode::REQUEST_TIMEOUT,
        (Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange, _) => StatusCode::BAD_REQUEST,
        (Code::NotFound, _) => StatusCode::NOT_FOUND,
        (Code::AlreadyExists | Code::Aborted, _) => StatusCode::CONFLICT,
        (Code::PermissionDenied, _) => StatusCode::FORBIDDEN,
        (Code::Unauthenticated, _) => StatusCode::UNAUTHORIZED,
        // Not the server is busy, but this client asks for too much.
        (Code::ResourceExhausted, _) if error.own_limit => StatusCode::TOO_MANY_REQUESTS,
        (Code::ResourceExhausted, _) => exhausted,
        (Code::Unavailable, _) => StatusCode::SERVICE_UNAVAILABLE,
        (Code::DeadlineExceeded, _) => StatusCode::GATEWAY_TIMEOUT,
        (Code::Unimplemented, _) => StatusCode::NOT_IMPLEMENTED,
        // "Client closed request", as nginx has it: nobody reads this.
        (Code::Cancelled, _) => StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST),
        (Code::Internal | Code::Unknown | Code::DataLoss, _) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http_body_util::BodyExt;

    use super::*;

    fn respond(code: Code, reason: &str) -> Response {
        error_response(&DaemonError::new(code, reason, "m"), StatusCode::TOO_MANY_REQUESTS)
    }

    #[test]
    fn each_code_has_a_status_and_is_named() {
        for (name, number) in [
            ("CANCELLED", 499),
            ("UNKNOWN", 500),
            ("INVALID_ARGUMENT", 400),
            ("DEADLINE_EXCEEDED", 504),
            ("NOT_FOUND", 404),
            ("ALREADY_EXISTS", 409),
            ("PERMISSION_DENIED", 403),
            ("RESOURCE_EXHAUSTED", 429),
            ("FAILED_PRECONDITION", 400),
            ("ABORTED", 409),
            ("OUT_OF_RANGE", 400),
            ("UNIMPLEMENTED", 501),
            ("INTERNAL", 500),
            ("UNAVAILABLE", 503),
            ("DATA_LOSS", 500),
            ("UNAUTHENTICATED", 401),
        ] {
            let response = respond(Code::from_name(name).unwrap(), "r");
            assert_eq!(response.status().as_u16(), number, "{name}");
            assert_eq!(response.headers()["multitower-code"], name);
            assert_eq!(response.headers()["multitower-reason"], "r");
        }
        assert_eq!(respond(Code::Unauthenticated, "unauthenticated").headers()["www-authenticate"], "Bearer");
        assert!(!respond(Code::PermissionDenied, "forbidden").headers().contains_key("www-authenticate"));
        assert_eq!(respond(Code::ResourceExhausted, "too_large").status(), 413);
        assert_eq!(respond(Code::DeadlineExceeded, "body_timeout").status(), 408);
    }

    #[test]
    fn only_what_may_succeed_later_has_a_time_to_try_again() {
        for (code, reason, expected) in [
            (Code::ResourceExhausted, "queue_full", Some("1")),
            (Code::Unavailable, "draining", Some("1")),
            (Code::Unavailable, "not_connected", Some("1")),
            (Code::Unavailable, "no_worker", None),
            (Code::Unavailable, "worker_died", None),
            (Code::Unavailable, "connection_lost", None),
            (Code::ResourceExhausted, "too_large", None),
            (Code::ResourceExhausted, "reply_dropped", None),
        ] {
            let response = respond(code, reason);
            let stated = response.headers().get("retry-after").map(|value| value.to_str().unwrap());
            assert_eq!(stated, expected, "{reason}");
        }
        // Where the daemon states a time, that counts: a model that is still loading.
        let mut loading = DaemonError::new(Code::Unavailable, "no_worker", "m");
        loading.retry_after = Some(Duration::from_millis(2100));
        assert_eq!(error_response(&loading, StatusCode::OK).headers()["retry-after"], "3");
    }

    #[test]
    fn a_limit_of_the_client_itself_has_a_status_of_its_own_at_every_interface() {
        let mut error = DaemonError::queue_full("m");
        assert_eq!(error_response(&error, StatusCode::SERVICE_UNAVAILABLE).status(), 503);
        error.own_limit = true;
        error.retry_after = Some(Duration::from_millis(1200));
        let response = error_response(&error, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!((response.status().as_u16(), &response.headers()["retry-after"]), (429, &HeaderValue::from(2)));
    }

    #[tokio::test]
    async fn error_bodies_are_json_whatever_the_message_has() {
        let error = DaemonError::invalid("a \"b\"\n\\ é");
        let response = error_response(&error, StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(response.headers()["content-type"], "application/json");
        let body = response.into_body().collect().await.expect("a body").to_bytes();
        let body: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
        assert_eq!(body, serde_json::json!({"error": "a \"b\"\n\\ é"}));
    }
}
