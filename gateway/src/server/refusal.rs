//! Answers to bytes that are no request of HTTP. hyper answers them with a status alone; this adds the body of an error.
//!
//! hyper has no place where these answers could be changed, so they are changed where they are written. HTTP/2 has no
//! such answers: there, such a client gets a status or its stream is reset.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::activity::Activity;
use crate::http::error_body;

/// What hyper's answer has instead of a body.
const NO_BODY: &str = "content-length: 0\r\n";

/// A socket that adds a body to hyper's answers to bytes that are no request.
pub struct WithRefusals<S> {
    stream: S,
    activity: Arc<Activity>,
    max_header_bytes: usize,
    /// The requests whose responses have been written.
    answered: u64,
    /// What is left of an answer that replaces another one.
    rest: Bytes,
}

impl<S> WithRefusals<S> {
    pub fn new(stream: S, max_header_bytes: usize, activity: Arc<Activity>) -> Self {
        Self { stream, activity, max_header_bytes, answered: 0, rest: Bytes::new() }
    }

    /// Returns what to write instead of an answer that belongs to no request.
    fn replacement(&self, written: &[u8]) -> Option<Bytes> {
        if !written.starts_with(b"HTTP/1.1 4") || self.activity.requests_if_none_is_open() != Some(self.answered) {
            return None;
        }
        let head = std::str::from_utf8(written).ok().filter(|text| text.ends_with("\r\n\r\n"))?;
        let (before, after) = head.split_once(NO_BODY)?;
        let (code, reason, message) = match before.get(9..12)? {
            "431" => {
                let limit = self.max_header_bytes;
                let message = format!("the request has more than 100 headers, or its head more than {limit} bytes");
                ("RESOURCE_EXHAUSTED", "too_large", message)
            }
            "414" => {
                ("RESOURCE_EXHAUSTED", "too_large", "the path of the request has more than 65534 bytes".to_owned())
            }
            _ => ("INVALID_ARGUMENT", "malformed", "the request is not valid HTTP/1.1 or HTTP/2".to_owned()),
        };
        let body = String::from_utf8(error_body(&message)).ok()?;
        let length = body.len();
        let headers = format!(
            "content-type: application/json\r\nmultitower-code: {code}\r\nmultitower-reason: {reason}\r\n\
             content-length: {length}\r\n"
        );
        Some([before, &headers, after, &body].concat().into())
    }
}

impl<S: AsyncWrite + Unpin> WithRefusals<S> {
    /// Writes what replaces an answer of `length` bytes. Returns that length once all is written.
    fn poll_replace(&mut self, context: &mut Context<'_>, length: usize) -> Poll<io::Result<usize>> {
        while !self.rest.is_empty() {
            match ready!(Pin::new(&mut self.stream).poll_write(context, &self.rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.rest.advance(written),
            }
        }
        Poll::Ready(Ok(length))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for WithRefusals<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for WithRefusals<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.rest.is_empty() {
            match this.replacement(bytes) {
                Some(replacement) => this.rest = replacement,
                None => return Pin::new(&mut this.stream).poll_write(context, bytes),
            }
        }
        // The same bytes come again until this returns their number.
        this.poll_replace(context, bytes.len())
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match slices {
            // Such an answer has no body, so it is one slice.
            [only] => self.poll_write(context, only),
            _ => Pin::new(&mut self.get_mut().stream).poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // hyper flushes the socket once it has written all that it had.
        if let Some(requests) = this.activity.requests_if_none_is_open() {
            this.answered = requests;
        }
        Pin::new(&mut this.stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}
