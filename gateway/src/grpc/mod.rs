//! gRPC: calls, both interfaces' services, health and reflection.
//!
//! A call is an HTTP/2 request whose path is `/SERVICE/METHOD`. Its messages are read here and handed to the method as
//! bytes; `open_inference::grpc` and `tensorflow_serving::grpc` know what they mean.

mod call;
mod health;
mod message;
mod reflection;
mod reply;
mod response_body;
pub mod wire;

pub use call::{Call, Deadline};
pub use message::framed;
pub use reply::{code_name, status_number, status_of};
pub use response_body::{GrpcBody, MessageStream};

use ::http::{Method, StatusCode, Version, header};
use bytes::Bytes;

use crate::context::Context;
use crate::http::{Body, Request, Response, response};
use crate::mt1::{Code, DaemonError};
use crate::threads::in_thread;
use crate::{open_inference, tensorflow_serving};

/// The services of this server, as health and reflection name them.
pub const SERVICES: [&str; 3] =
    ["inference.GRPCInferenceService", "tensorflow.serving.PredictionService", "tensorflow.serving.ModelService"];

/// What a method returns: pieces of one message, or a stream of framed messages.
pub enum Answer {
    Message(Vec<Bytes>),
    Stream(MessageStream),
}

/// The gRPC services.
pub struct Services;

impl Services {
    /// Answers a request whose content type begins with `application/grpc`, also for unknown paths (UNIMPLEMENTED).
    pub async fn call(context: Context, request: Request) -> Response {
        if request.method() != Method::POST {
            return response(StatusCode::METHOD_NOT_ALLOWED, Body::Empty);
        }
        if !is_protobuf(&request) {
            return response(StatusCode::UNSUPPORTED_MEDIA_TYPE, Body::Empty);
        }
        if request.version() != Version::HTTP_2 {
            return Self::refusal(&http2_needed(request.version()));
        }
        match Self::answer(context, request).await {
            Ok(response) => response,
            Err(error) => Self::refusal(&error),
        }
    }

    /// Returns the response to a call that failed.
    pub fn refusal(error: &DaemonError) -> Response {
        reply::failed(error)
    }

    async fn answer(context: Context, request: Request) -> Result<Response, DaemonError> {
        let (head, body) = request.into_parts();
        let call = Call::new(context, &head.headers, body)?;
        let compression = call.reply_compression();
        let (service, method) = split_path(head.uri.path());
        let answer = match service {
            "inference.GRPCInferenceService" => open_inference::grpc::answer(call, method).await?,
            "tensorflow.serving.PredictionService" => tensorflow_serving::grpc::predict(call, method).await?,
            // What is called seldom has its future on the heap, so that the others' stays small.
            "tensorflow.serving.ModelService" => Box::pin(tensorflow_serving::grpc::model(call, method)).await?,
            "grpc.health.v1.Health" => Box::pin(health::answer(call, method)).await?,
            "grpc.reflection.v1.ServerReflection" | "grpc.reflection.v1alpha.ServerReflection" => {
                reflection::answer(call, method)?
            }
            "tensorflow.serving.SessionService" => {
                return Err(DaemonError::unsupported(
                    "SessionService is not supported: use PredictionService, whose requests name inputs and outputs",
                ));
            }
            _ => return Err(DaemonError::unsupported(format!("unknown service {service}"))),
        };
        Ok(match answer {
            Answer::Message(pieces) => reply::unary(framed(pieces, compression).await?, compression),
            Answer::Stream(stream) => reply::streaming(stream, compression),
        })
    }
}

/// The error for a call that a proxy has made one of HTTP/1.1: there, the status would be in trailers that get lost.
fn http2_needed(version: Version) -> DaemonError {
    DaemonError::unsupported(format!(
        "gRPC needs HTTP/2, but this call came over {version:?}: a proxy has to pass it on as HTTP/2 (in nginx with \
         grpc_pass instead of proxy_pass, in HAProxy with `proto h2` at the server)"
    ))
}

/// The error for a method that a service of this server does not have.
pub fn unknown_method(service: &str, method: &str) -> DaemonError {
    DaemonError::unsupported(format!("{service} has no method {method}"))
}

/// `/SERVICE/METHOD`, or for any other path what is before and after the last slash.
fn split_path(path: &str) -> (&str, &str) {
    let path = path.strip_prefix('/').unwrap_or(path);
    path.rsplit_once('/').unwrap_or((path, ""))
}

/// Whether the messages are Protocol Buffers, as opposed to gRPC-Web and other codecs.
fn is_protobuf(request: &Request) -> bool {
    let content_type = request.headers().get(header::CONTENT_TYPE).map_or(&b""[..], |value| value.as_bytes());
    let end = content_type.iter().position(|&byte| byte == b';').unwrap_or(content_type.len());
    matches!(content_type[..end].trim_ascii(), b"application/grpc" | b"application/grpc+proto")
}

/// Decodes a message of a method that is called seldom.
///
/// Generated types can take many times a message's size in memory, so these messages are limited.
pub fn decode<M: prost::Message + Default>(message: &[u8]) -> Result<M, DaemonError> {
    const LIMIT: usize = 256 << 10;
    if message.len() > LIMIT {
        let text = format!("the message has {} bytes; this method takes at most {LIMIT}", message.len());
        return Err(DaemonError::new(Code::ResourceExhausted, "too_large", text));
    }
    M::decode(message).map_err(|_| wire::malformed())
}

/// Larger messages are decoded in another thread, and so are those whose tensors are larger than the second number.
const INLINE_MESSAGE_BYTES: usize = 64 << 10;
const INLINE_TENSOR_BYTES: usize = 1 << 20;

/// Decodes a message that may become tensors of `limit` bytes: at once if both are small, otherwise in another thread.
///
/// A small message can stand for large tensors. `decode` must fail with the reason `too_large` before it makes them.
pub async fn decode_tensors<T: Send + 'static>(
    message: Bytes,
    limit: usize,
    decode: fn(&Bytes, usize) -> Result<T, DaemonError>,
) -> Result<T, DaemonError> {
    if message.len() <= INLINE_MESSAGE_BYTES {
        match decode(&message, limit.min(INLINE_TENSOR_BYTES)) {
            Err(error) if error.reason == "too_large" => {}
            outcome => return outcome,
        }
    }
    in_thread(move || decode(&message, limit)).await
}

/// Encodes the reply of a method that is called seldom.
pub fn encode<M: prost::Message>(message: &M) -> Answer {
    Answer::Message(vec![message.encode_to_vec().into()])
}

#[cfg(test)]
mod tests {
    use std::thread::{self, ThreadId};

    use super::*;

    #[tokio::test]
    async fn only_what_is_small_is_decoded_at_once() {
        /// Reads tensors of as many mebibytes as the first byte says.
        fn decode(message: &Bytes, limit: usize) -> Result<ThreadId, DaemonError> {
            if usize::from(message[0]) << 20 > limit {
                return Err(DaemonError::new(Code::ResourceExhausted, "too_large", "m"));
            }
            Ok(thread::current().id())
        }
        let here = |message: Vec<u8>| async {
            decode_tensors(message.into(), 4 << 20, decode).await.map(|thread| thread == thread::current().id())
        };
        assert_eq!(here(vec![1]).await, Ok(true));
        assert_eq!(here(vec![2]).await, Ok(false));
        assert_eq!(here(vec![1; INLINE_MESSAGE_BYTES + 1]).await, Ok(false));
        assert_eq!(here(vec![5]).await.unwrap_err().reason, "too_large");
    }

    #[test]
    fn paths_have_a_service_and_a_method() {
        for (path, expected) in [
            ("/inference.GRPCInferenceService/ModelInfer", ("inference.GRPCInferenceService", "ModelInfer")),
            ("/a/b/c", ("a/b", "c")),
            ("/", ("", "")),
            ("/x", ("x", "")),
        ] {
            assert_eq!(split_path(path), expected);
        }
    }
}
