//! Responses of gRPC calls, and errors as gRPC statuses.

use ::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use bytes::Bytes;

use super::message::ACCEPTED_ENCODINGS;
use super::response_body::{GrpcBody, MessageStream};
use crate::compression::Compression;
use crate::http::{Body, REASON, Response};
use crate::mt1::{Code, DaemonError};

const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
const STATUS: HeaderName = HeaderName::from_static("grpc-status");
const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
const ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");
/// gRPC's own name for "try again after so many milliseconds": clients with a retry policy obey it.
const PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");

/// Longer messages are cut: clients refuse trailers of more than about 8 KiB.
const MESSAGE_LIMIT: usize = 2048;

/// Returns the response of a call that succeeded with one message.
pub fn unary(pieces: Vec<Bytes>, compression: Option<Compression>) -> Response {
    response(GrpcBody::unary(pieces, ok()), compression)
}

/// Returns the response of a call that answers with a stream.
pub fn streaming(stream: MessageStream, compression: Option<Compression>) -> Response {
    response(GrpcBody::streaming(stream, ok()), compression)
}

/// Returns the response of a call that failed before it answered anything.
pub fn failed(error: &DaemonError) -> Response {
    let mut response = Response::new(Body::Empty);
    *response.status_mut() = StatusCode::OK;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, GRPC);
    write_status(headers, error);
    if error.code == Code::Unimplemented {
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static(ACCEPTED_ENCODINGS));
    }
    response
}

fn response(body: GrpcBody, compression: Option<Compression>) -> Response {
    let mut response = Response::new(Body::Grpc(body));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, GRPC);
    if let Some(compression) = compression {
        headers.insert(ENCODING, HeaderValue::from_static(compression.name()));
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static(ACCEPTED_ENCODINGS));
    }
    response
}

fn ok() -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert(STATUS, HeaderValue::from_static("0"));
    trailers
}

/// Returns the trailers of a call that failed.
pub fn error_status(error: &DaemonError) -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(4);
    write_status(&mut trailers, error);
    trailers
}

fn write_status(headers: &mut HeaderMap, error: &DaemonError) {
    headers.insert(STATUS, HeaderValue::from(status_number(error.code)));
    if let Ok(message) = HeaderValue::from_str(&percent_encoded(&error.message)) {
        headers.insert(MESSAGE, message);
    }
    if let Ok(reason) = HeaderValue::from_str(&error.reason) {
        headers.insert(REASON, reason);
    }
    if let Some(wait) = error.retry_after() {
        headers.insert(PUSHBACK, HeaderValue::from(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)));
    }
}

/// Returns gRPC's number of a code.
pub fn status_number(code: Code) -> u16 {
    match code {
        Code::Cancelled => 1,
        Code::Unknown => 2,
        Code::InvalidArgument => 3,
        Code::DeadlineExceeded => 4,
        Code::NotFound => 5,
        Code::AlreadyExists => 6,
        Code::PermissionDenied => 7,
        Code::ResourceExhausted => 8,
        Code::FailedPrecondition => 9,
        Code::Aborted => 10,
        Code::OutOfRange => 11,
        Code::Unimplemented => 12,
        Code::Internal => 13,
        Code::Unavailable => 14,
        Code::DataLoss => 15,
        Code::Unauthenticated => 16,
    }
}

/// Returns the name of gRPC's number of a code, such as `NOT_FOUND`, also that of success.
pub fn code_name(number: u16) -> &'static str {
    match number {
        0 => "OK",
        _ => Code::all().find(|&code| status_number(code) == number).unwrap_or(Code::Unknown).name(),
    }
}

/// Returns the number of the status that headers or trailers have, if they have one.
pub fn status_of(headers: &HeaderMap) -> Option<u16> {
    headers.get(STATUS)?.to_str().ok()?.parse().ok()
}

/// Encodes a message for `grpc-message`: printable ASCII stays, `%` and everything else becomes `%XX`.
fn percent_encoded(message: &str) -> String {
    let mut encoded = String::with_capacity(message.len());
    for character in message.chars() {
        if encoded.len() > MESSAGE_LIMIT {
            encoded.push_str("...");
            break;
        }
        if matches!(character, ' '..='~') && character != '%' {
            encoded.push(character);
        } else {
            for byte in character.encode_utf8(&mut [0; 4]).bytes() {
                encoded.push_str(&format!("%{byte:02X}"));
            }
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn messages_are_percent_encoded() {
        for (message, encoded) in [
            ("no model 'x' [2, 3]", "no model 'x' [2, 3]"),
            ("100%\n", "100%25%0A"),
            ("größe", "gr%C3%B6%C3%9Fe"),
            ("", ""),
        ] {
            assert_eq!(percent_encoded(message), encoded);
        }
        assert!(percent_encoded(&"ö".repeat(10_000)).len() < MESSAGE_LIMIT + 20);
    }

    #[test]
    fn an_error_has_code_reason_and_when_to_try_again() {
        let mut error = DaemonError::new(Code::ResourceExhausted, "queue_full", "the queue is full");
        error.retry_after = Some(Duration::from_millis(1500));
        let response = failed(&error);
        assert_eq!(response.status(), StatusCode::OK);
        for (name, value) in [
            ("content-type", "application/grpc"),
            ("grpc-status", "8"),
            ("grpc-message", "the queue is full"),
            ("multitower-reason", "queue_full"),
            ("grpc-retry-pushback-ms", "1500"),
        ] {
            assert_eq!(response.headers()[name], value, "{name}");
        }
    }
}
