//! Bodies of gRPC responses: messages, then the status as trailers.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

use ::http::HeaderMap;
use bytes::Bytes;
use futures_util::Stream;
use http_body::Frame;

use super::reply::error_status;
use crate::budget::Held;
use crate::mt1::DaemonError;

/// What a streaming method answers: framed messages in pieces. An error is the last item, and the call's status.
pub type MessageStream = Pin<Box<dyn Stream<Item = Result<Vec<Bytes>, DaemonError>> + Send>>;

/// The body of a gRPC response.
pub struct GrpcBody {
    pieces: VecDeque<Bytes>,
    stream: Option<MessageStream>,
    trailers: Option<HeaderMap>,
}

impl GrpcBody {
    /// One framed message, and the trailers.
    pub fn unary(pieces: Vec<Bytes>, trailers: HeaderMap) -> Self {
        Self { pieces: pieces.into(), stream: None, trailers: Some(trailers) }
    }

    /// Framed messages as they come, and the trailers.
    pub fn streaming(stream: MessageStream, trailers: HeaderMap) -> Self {
        Self { pieces: VecDeque::new(), stream: Some(stream), trailers: Some(trailers) }
    }

    /// Has large pieces of the one message counted until the connection has written them.
    pub fn counted(mut self, held: &Held) -> Self {
        held.count_answers(&mut self.pieces);
        self
    }

    /// Returns the next frame, or None at the end.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Frame<Bytes>>> {
        loop {
            if let Some(piece) = self.pieces.pop_front() {
                return Poll::Ready(Some(Frame::data(piece)));
            }
            let Some(stream) = &mut self.stream else {
                return Poll::Ready(self.trailers.take().map(Frame::trailers));
            };
            match stream.as_mut().poll_next(context) {
                Poll::Ready(Some(Ok(pieces))) => self.pieces = pieces.into(),
                Poll::Ready(Some(Err(error))) => {
                    self.stream = None;
                    self.trailers = Some(error_status(&error));
                }
                Poll::Ready(None) => self.stream = None,
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Whether nothing follows.
    pub fn is_end(&self) -> bool {
        self.pieces.is_empty() && self.stream.is_none() && self.trailers.is_none()
    }
}
