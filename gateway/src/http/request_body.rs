//! The body of a request as it arrives.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Version, header};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use crate::budget::Held;

/// What is read at most of a body that nobody wants.
const DISCARDED_BYTES: usize = 256 << 20;
const DISCARDED_UNKNOWN_BYTES: usize = 1 << 20;
const DISCARDED_TIME: Duration = Duration::from_secs(10);

/// The body of a request as it arrives.
///
/// If it is dropped before its end, the rest is read and discarded. Otherwise the connection or stream would be reset
/// while the client still sends, and the client would get that error instead of the response that says why.
pub struct RequestBody {
    body: Option<Incoming>,
    /// How many bytes are read at most after nobody wants them.
    discard: usize,
    /// Whether the client waits for `100 Continue`, which is sent as soon as somebody reads, and has sent nothing yet.
    waits: bool,
    held: Arc<Held>,
}

impl RequestBody {
    /// Wraps the body of a request. What reads the body adds the bytes to `held`.
    pub fn wrap(request: Request<Incoming>, held: Arc<Held>) -> Request<RequestBody> {
        let headers = request.headers();
        let content_type = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
        // gRPC's clients expect that a call may end before their last message. Over HTTP/1.1 it is a proxy that sends it.
        let is_grpc = request.version() == Version::HTTP_2 && content_type.starts_with(b"application/grpc");
        let discard = if is_grpc { 0 } else { DISCARDED_BYTES };
        let waits = headers.contains_key(header::EXPECT);
        request.map(|body| RequestBody { body: Some(body), discard, waits, held })
    }

    /// Has less of the body read if it is dropped: its client is not known.
    pub fn keep_little(&mut self) {
        self.discard = self.discard.min(DISCARDED_UNKNOWN_BYTES);
    }

    /// Returns what counts the memory of the request.
    pub fn held(&self) -> &Arc<Held> {
        &self.held
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.waits = false;
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let frame = Pin::new(body).poll_frame(context);
        if matches!(frame, Poll::Ready(Some(Err(_)))) {
            self.discard = 0;
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map(Body::size_hint).unwrap_or_default()
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        if self.waits || self.discard == 0 || self.is_end_stream() {
            return;
        }
        if let (Some(body), Ok(runtime)) = (self.body.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(tokio::time::timeout(DISCARDED_TIME, discard(body, self.discard)));
        }
    }
}

async fn discard(mut body: Incoming, limit: usize) {
    let mut discarded = 0;
    while let Some(Ok(frame)) = body.frame().await {
        discarded += frame.data_ref().map_or(0, Bytes::len);
        if discarded > limit {
            return;
        }
    }
}
