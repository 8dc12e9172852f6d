//! Errors as MT1 states them: a gRPC status, a reason, a message.

use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;

/// The codes of MT1, which are gRPC's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    Cancelled,
    Unknown,
    InvalidArgument,
    DeadlineExceeded,
    NotFound,
    AlreadyExists,
    PermissionDenied,
    ResourceExhausted,
    FailedPrecondition,
    Aborted,
    OutOfRange,
    Unimplemented,
    Internal,
    Unavailable,
    DataLoss,
    Unauthenticated,
}

/// All codes, with their names.
const CODES: [(Code, &str); 16] = [
    (Code::Cancelled, "CANCELLED"),
    (Code::Unknown, "UNKNOWN"),
    (Code::InvalidArgument, "INVALID_ARGUMENT"),
    (Code::DeadlineExceeded, "DEADLINE_EXCEEDED"),
    (Code::NotFound, "NOT_FOUND"),
    (Code::AlreadyExists, "ALREADY_EXISTS"),
    (Code::PermissionDenied, "PERMISSION_DENIED"),
    (Code::ResourceExhausted, "RESOURCE_EXHAUSTED"),
    (Code::FailedPrecondition, "FAILED_PRECONDITION"),
    (Code::Aborted, "ABORTED"),
    (Code::OutOfRange, "OUT_OF_RANGE"),
    (Code::Unimplemented, "UNIMPLEMENTED"),
    (Code::Internal, "INTERNAL"),
    (Code::Unavailable, "UNAVAILABLE"),
    (Code::DataLoss, "DATA_LOSS"),
    (Code::Unauthenticated, "UNAUTHENTICATED"),
];

impl Code {
    /// Returns the code of a name such as `NOT_FOUND`, if there is one.
    pub fn from_name(name: &str) -> Option<Code> {
        CODES.iter().find(|(_, known)| *known == name).map(|(code, _)| *code)
    }

    /// Returns all codes.
    pub fn all() -> impl Iterator<Item = Code> {
        CODES.into_iter().map(|(code, _)| code)
    }

    /// Returns its name, such as `NOT_FOUND`.
    pub fn name(self) -> &'static str {
        CODES.iter().find(|(code, _)| *code == self).map_or("UNKNOWN", |(_, name)| name)
    }
}

/// The reason of a request for which there is no room at the moment.
const QUEUE_FULL: &str = "queue_full";

/// The limits in the details of `queue_full` that are the client's own.
const OWN_LIMITS: [&str; 3] = ["rate", "max_outstanding", "authentication"];

/// When to try again if nothing more precise is known.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Reasons of requests that were not run and may succeed later, also if the daemon states no time. `no_worker` is none of
/// them: the daemon states a time where a worker is to come.
const TEMPORARY: [&str; 3] = [QUEUE_FULL, "draining", "not_connected"];

/// The reason of a request without valid credentials, or with those of a principal that was removed.
pub const UNAUTHENTICATED: &str = "unauthenticated";

#[derive(Deserialize)]
struct ErrorHeader<'a> {
    #[serde(borrow)]
    error: ErrorBody<'a>,
}

#[derive(Deserialize)]
struct ErrorBody<'a> {
    #[serde(default)]
    code: String,
    #[serde(default)]
    reason: String,
    #[serde(default)]
    message: String,
    #[serde(borrow)]
    details: Option<&'a RawValue>,
}

/// Details are not read with the rest of the header: a handler may have chosen them, and any JSON may be in them.
#[derive(Deserialize, Default)]
struct ErrorDetails<'a> {
    #[serde(borrow)]
    field: Option<&'a RawValue>,
    #[serde(borrow)]
    retry_after_ms: Option<&'a RawValue>,
    #[serde(borrow)]
    limit: Option<&'a RawValue>,
    /// Of a `model_error`: the status that the model's exception stands for.
    #[serde(borrow)]
    status: Option<&'a RawValue>,
}

/// Returns a value of the details; None where it is missing or of another type.
fn read<'a, T: Deserialize<'a>>(value: Option<&'a RawValue>) -> Option<T> {
    serde_json::from_str(value?.get()).ok()
}

/// Why a request failed, as the daemon reports it, or the gateway in the same terms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DaemonError {
    pub code: Code,
    /// One of MT1's reasons, such as `model_unknown`.
    pub reason: String,
    pub message: String,
    /// The name of an input or output, or a position in the header.
    pub field: Option<String>,
    /// When to try again, if the daemon states it. See also the method of this name.
    pub retry_after: Option<Duration>,
    /// Whether the client itself asks for too much: its principal's limits, or too many wrong tokens. Others are served.
    pub own_limit: bool,
}

impl DaemonError {
    pub fn new(code: Code, reason: &str, message: impl Into<String>) -> Self {
        Self {
            code,
            reason: reason.to_owned(),
            message: message.into(),
            field: None,
            retry_after: None,
            own_limit: false,
        }
    }

    /// A request that is wrong in itself (INVALID_ARGUMENT / `malformed`).
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, "malformed", message)
    }

    /// What this gateway does not support (UNIMPLEMENTED).
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::new(Code::Unimplemented, "kind_unknown", message)
    }

    /// What is larger than `max_body_bytes` (RESOURCE_EXHAUSTED / `too_large`). `what` is "body" or "message".
    pub fn too_large(what: &str, limit: usize) -> Self {
        let message = format!("the {what} is larger than the limit of {limit} bytes (gateway.max_body_size)");
        Self::new(Code::ResourceExhausted, "too_large", message)
    }

    /// What did not arrive within `body_timeout` (DEADLINE_EXCEEDED / `body_timeout`). `what` is "body" or "message".
    pub fn too_slow(what: &str, timeout: Duration) -> Self {
        let message = format!("the {what} did not arrive within {} s (gateway.body_timeout)", timeout.as_secs_f64());
        Self::new(Code::DeadlineExceeded, "body_timeout", message)
    }

    /// A limit of the gateway that others use up at the moment (RESOURCE_EXHAUSTED / `queue_full`).
    pub fn queue_full(message: impl Into<String>) -> Self {
        Self::new(Code::ResourceExhausted, "queue_full", message)
    }

    /// A request without a credential, or with one that is not valid (UNAUTHENTICATED / `unauthenticated`).
    pub fn unauthenticated(message: impl Into<String>) -> Self {
        Self::new(Code::Unauthenticated, UNAUTHENTICATED, message)
    }

    /// A defect of the gateway or the daemon (INTERNAL / `internal_error`).
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Code::Internal, "internal_error", message)
    }

    /// The header of an `MT1:error` reply.
    pub fn from_header(header: &[u8]) -> Self {
        let Ok(ErrorHeader { error }) = serde_json::from_slice(header) else {
            return Self::internal("the daemon sent an error that cannot be read");
        };
        let details: ErrorDetails = read(error.details).unwrap_or_default();
        let retry_after_ms: Option<f64> = read(details.retry_after_ms);
        // Other servers of TensorFlow models answer with the status of the exception; MT1's own code is always INTERNAL.
        let status: Option<String> = read(details.status).filter(|_| error.reason == "model_error");
        let limit: Option<String> = read(details.limit).filter(|_| error.reason == QUEUE_FULL);
        let stated = status.and_then(|name| Code::from_name(&name));
        Self {
            code: stated.or_else(|| Code::from_name(&error.code)).unwrap_or(Code::Unknown),
            reason: error.reason,
            message: error.message,
            field: read(details.field),
            retry_after: retry_after_ms.and_then(|ms| Duration::try_from_secs_f64(ms / 1000.0).ok()),
            own_limit: limit.is_some_and(|limit| OWN_LIMITS.contains(&limit.as_str())),
        }
    }

    /// Returns when to send the request again, for one that was not run and may succeed later; None for all others.
    pub fn retry_after(&self) -> Option<Duration> {
        let temporary = TEMPORARY.contains(&self.reason.as_str());
        self.retry_after.or_else(|| temporary.then_some(RETRY_AFTER))
    }

    /// The connection to the daemon was lost after the request had been sent.
    pub fn connection_lost() -> Self {
        let message = "the connection to the daemon was lost; the request may have been executed";
        Self::new(Code::Unavailable, "connection_lost", message)
    }

    /// There is no connection to the daemon, and the request was not sent.
    pub fn not_connected() -> Self {
        Self::new(Code::Unavailable, "not_connected", "the daemon does not accept connections; it may be restarting")
    }
}

impl std::fmt::Display for DaemonError {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl std::error::Error for DaemonError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_the_daemon_are_read() {
        let header = br#"{"error": {"code": "RESOURCE_EXHAUSTED", "reason": "queue_full", "message": "m",
                          "details": {"field": "x", "retry_after_ms": 1500, "other": []}}}"#;
        let error = DaemonError::from_header(header);
        assert_eq!(
            (error.code, error.reason.as_str(), error.message.as_str()),
            (Code::ResourceExhausted, "queue_full", "m")
        );
        assert_eq!((error.field.as_deref(), error.retry_after), (Some("x"), Some(Duration::from_millis(1500))));
        assert_eq!(DaemonError::from_header(br#"{"error": {"code": "NEW"}}"#).code, Code::Unknown);
        assert_eq!(DaemonError::from_header(b"[]").code, Code::Internal);
    }

    #[test]
    fn limits_of_the_client_itself_are_told_from_a_full_queue() {
        for (reason, details, expected) in [
            ("queue_full", r#"{"limit": "rate", "retry_after_ms": 5}"#, true),
            ("queue_full", r#"{"limit": "max_outstanding"}"#, true),
            ("queue_full", r#"{"limit": "authentication"}"#, true),
            ("queue_full", r#"{"limit": "max_queue"}"#, false),
            ("queue_full", r#"{"limit": 3}"#, false),
            ("queue_full", "{}", false),
            ("model_error", r#"{"limit": "rate"}"#, false),
        ] {
            let header =
                format!(r#"{{"error": {{"code": "RESOURCE_EXHAUSTED", "reason": "{reason}", "details": {details}}}}}"#);
            assert_eq!(DaemonError::from_header(header.as_bytes()).own_limit, expected, "{header}");
        }
    }

    #[test]
    fn an_exception_of_the_model_has_its_own_status() {
        for (reason, details, expected) in [
            ("model_error", r#"{"status": "INVALID_ARGUMENT"}"#, Code::InvalidArgument),
            ("model_error", r#"{"status": "OUT_OF_RANGE"}"#, Code::OutOfRange),
            ("model_error", r#"{"status": "UNKNOWN"}"#, Code::Unknown),
            ("model_error", r#"{"status": "bad image"}"#, Code::Internal),
            ("model_error", r#"{"status": 3}"#, Code::Internal),
            ("model_error", "{}", Code::Internal),
            ("output_invalid", r#"{"status": "INVALID_ARGUMENT"}"#, Code::Internal),
        ] {
            let header = format!(r#"{{"error": {{"code": "INTERNAL", "reason": "{reason}", "details": {details}}}}}"#);
            assert_eq!(DaemonError::from_header(header.as_bytes()).code, expected, "{header}");
        }
    }

    #[test]
    fn whatever_the_details_hold_the_rest_of_the_error_is_read() {
        let (field, wait) = (Some("x"), Some(Duration::from_secs(2)));
        let large = format!(r#"{{"rows": 1{}, "field": "x"}}"#, "0".repeat(400));
        let deep = format!(r#"{{"rows": {}{}, "field": "x"}}"#, "[".repeat(500), "]".repeat(500));
        let table = [
            (r#"{"field": "x", "retry_after_ms": 2000}"#, field, wait),
            (r#"{"status": 400, "field": "x"}"#, field, None),
            (r#"{"status": ["a"], "field": {"name": "x"}, "retry_after_ms": 2000}"#, None, wait),
            (r#"{"field": 3, "retry_after_ms": "soon"}"#, None, None),
            (r#"{"field": "x", "retry_after_ms": "2000"}"#, field, None),
            (r#"{"field": "x", "retry_after_ms": -1}"#, field, None),
            (r#"{"field": "x", "retry_after_ms": 1e400}"#, field, None),
            (r#"{"field": "x", "retry_after_ms": 1e300}"#, field, None),
            (r#"{"field": null, "retry_after_ms": null, "status": null}"#, None, None),
            (r#"{"field": "\udc80", "retry_after_ms": 2000}"#, None, wait),
            (r#"{"file": "\udc80", "field": "x"}"#, field, None),
            (&large, field, None),
            (&deep, field, None),
            ("{}", None, None),
            ("null", None, None),
            (r#""row 3""#, None, None),
            ("[1, 2]", None, None),
        ];
        for (details, field, wait) in table {
            let header = format!(
                r#"{{"error": {{"code": "INVALID_ARGUMENT", "reason": "shape_invalid", "message": "row 3 is empty",
                               "details": {details}}}}}"#
            );
            let error = DaemonError::from_header(header.as_bytes());
            assert_eq!((error.code, &error.reason[..]), (Code::InvalidArgument, "shape_invalid"), "{details}");
            assert_eq!((&error.message[..], error.field.as_deref()), ("row 3 is empty", field), "{details}");
            assert_eq!(error.retry_after, wait, "{details}");
        }
    }

    #[test]
    fn codes_have_the_names_of_grpc() {
        for (code, name) in CODES {
            assert_eq!((code.name(), Code::from_name(name)), (name, Some(code)));
        }
        assert_eq!(Code::from_name("NEW"), None);
    }
}
