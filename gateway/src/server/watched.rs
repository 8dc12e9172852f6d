//! Sockets and responses that record in an [`Activity`] what happens to them.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::activity::Activity;
use crate::budget::LARGE_BYTES;
use crate::grpc;
use crate::http::{Body, BodyError};
use crate::statistics::{Statistics, UncountedCall};

/// A socket that records what happens to it, and whose bytes are counted.
pub struct Watched<S> {
    stream: S,
    activity: Arc<Activity>,
    statistics: Arc<Statistics>,
}

impl<S> Watched<S> {
    pub fn new(stream: S, activity: Arc<Activity>, statistics: Arc<Statistics>) -> Self {
        Self { stream, activity, statistics }
    }

    fn written(&self, outcome: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match outcome {
            Poll::Pending => self.activity.write_blocked(),
            Poll::Ready(Err(_)) => self.activity.bytes_written(),
            Poll::Ready(Ok(bytes)) => {
                self.activity.bytes_written();
                self.statistics.sent(bytes);
            }
        }
        outcome
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let outcome = Pin::new(&mut this.stream).poll_read(context, buffer);
        let received = buffer.filled().len() - before;
        if received > 0 {
            this.activity.bytes_read();
            this.statistics.received(received);
        }
        outcome
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.stream).poll_write(context, bytes);
        this.written(outcome)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.stream).poll_write_vectored(context, slices);
        this.written(outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

/// Ends a request when dropped: when its response has been handed over, or its client has gone.
pub struct OpenRequest {
    activity: Arc<Activity>,
    http2: bool,
}

impl OpenRequest {
    pub fn begin(activity: Arc<Activity>, http2: bool) -> Self {
        activity.request_began(http2);
        Self { activity, http2 }
    }
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        self.activity.request_ended();
    }
}

/// The body of a response, which records what the connection has not written, and how a gRPC call has ended.
pub struct WatchedBody {
    body: Body,
    request: OpenRequest,
    uncounted: Option<UncountedCall>,
}

impl WatchedBody {
    pub fn new(body: Body, request: OpenRequest, uncounted: Option<UncountedCall>) -> Self {
        Self { body, request, uncounted }
    }

    fn count_end(&mut self, frame: &Frame<Bytes>) {
        if let Some(trailers) = frame.trailers_ref()
            && let Some(uncounted) = self.uncounted.take()
        {
            uncounted.end(grpc::status_of(trailers));
        }
    }
}

impl Drop for WatchedBody {
    fn drop(&mut self) {
        if let Some(uncounted) = self.uncounted.take() {
            uncounted.end(None);
        }
    }
}

impl http_body::Body for WatchedBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.body).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            this.count_end(frame);
        }
        let OpenRequest { activity, http2 } = &this.request;
        polled.map_ok(|frame| {
            frame.map_data(|piece| {
                // A small response of HTTP/1.1 is in the socket or blocks it.
                if *http2 || piece.len() >= LARGE_BYTES { Piece::hand_over(piece, activity) } else { piece }
            })
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A piece of a response until the connection has written it.
struct Piece {
    bytes: Bytes,
    activity: Arc<Activity>,
    number: u32,
}

impl Piece {
    fn hand_over(bytes: Bytes, activity: &Arc<Activity>) -> Bytes {
        let number = activity.piece_handed_over(bytes.len());
        if bytes.len() < LARGE_BYTES {
            activity.budget().count(bytes.len()); // larger ones are counted from the beginning
        }
        Bytes::from_owner(Self { bytes, activity: activity.clone(), number })
    }
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.activity.piece_written(self.number, self.bytes.len());
        if self.bytes.len() < LARGE_BYTES {
            self.activity.budget().give_back(self.bytes.len());
        }
    }
}
