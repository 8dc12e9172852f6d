//! Finds out by a connection's first bytes what its client speaks, before anything is reserved for it.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What every HTTP/2 connection begins with.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A socket whose first bytes can be looked at before they are read.
pub struct Peeked<S> {
    stream: S,
    /// Bytes that the socket has given, and that are still to be read.
    first: BytesMut,
}

impl<S> Peeked<S> {
    pub fn new(stream: S) -> Self {
        Self { stream, first: BytesMut::new() }
    }
}

impl<S: AsyncRead + Unpin> Peeked<S> {
    /// Whether the connection begins with HTTP/2's preface. Pending until the bytes so far tell.
    pub fn poll_is_http2(&mut self, context: &mut Context<'_>) -> Poll<io::Result<bool>> {
        loop {
            let expected = &PREFACE[..self.first.len()];
            if self.first != expected {
                return Poll::Ready(Ok(false));
            }
            if expected.len() == PREFACE.len() {
                return Poll::Ready(Ok(true));
            }
            if ready!(self.poll_more(context))? == 0 {
                return Poll::Ready(Ok(false)); // the next read returns the end again
            }
        }
    }

    /// Returns the first byte of the connection; None if it ends before.
    pub fn poll_first(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Option<u8>>> {
        if self.first.is_empty() {
            ready!(self.poll_more(context))?;
        }
        Poll::Ready(Ok(self.first.first().copied()))
    }

    /// Reads more of the first bytes, as many as a preface has at most. Returns how many; 0 at the end.
    fn poll_more(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut space = [0; PREFACE.len()];
        let mut buffer = ReadBuf::new(&mut space[self.first.len()..]);
        ready!(Pin::new(&mut self.stream).poll_read(context, &mut buffer))?;
        self.first.extend_from_slice(buffer.filled());
        Poll::Ready(Ok(buffer.filled().len()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Peeked<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.first.is_empty() {
            return Pin::new(&mut this.stream).poll_read(context, buffer);
        }
        let length = this.first.len().min(buffer.remaining());
        buffer.put_slice(&this.first[..length]);
        this.first.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Peeked<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(context, slices)
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

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn http2_is_told_by_its_preface_and_nothing_that_was_read_is_lost() {
        let http2 = [&PREFACE[..], b"frames"].concat();
        let table: [(&[u8], bool); 7] = [
            (&http2, true),
            (PREFACE, true),
            (&PREFACE[..23], false),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r-", false),
            (b"POST / HTTP/1.1\r\n\r\n", false),
            (b"P", false),
            (b"", false),
        ];
        for (sent, expected) in table {
            for packet in [1, 30] {
                let (mut client, server) = duplex(packet);
                let bytes = sent.to_vec();
                tokio::spawn(async move { client.write_all(&bytes).await });
                let mut server = Peeked::new(server);
                let is_http2 = poll_fn(|context| server.poll_is_http2(context)).await.unwrap();
                assert_eq!(is_http2, expected, "{}", sent.escape_ascii());
                let mut read = Vec::new();
                server.read_to_end(&mut read).await.unwrap();
                assert_eq!(read, sent);
            }
        }
    }

    #[tokio::test]
    async fn the_first_byte_is_not_lost() {
        for (sent, expected) in [(&b"\x16\x03\x01"[..], Some(22)), (b"", None)] {
            let (mut client, server) = duplex(30);
            client.write_all(sent).await.unwrap();
            drop(client);
            let mut server = Peeked::new(server);
            assert_eq!(poll_fn(|context| server.poll_first(context)).await.unwrap(), expected);
            let mut read = Vec::new();
            server.read_to_end(&mut read).await.unwrap();
            assert_eq!(read, sent);
        }
    }

    #[tokio::test]
    async fn a_silent_client_is_neither() {
        for sent in [&b""[..], &PREFACE[..23]] {
            let (mut client, server) = duplex(30);
            client.write_all(sent).await.unwrap();
            let mut server = Peeked::new(server);
            assert!(server.poll_is_http2(&mut Context::from_waker(std::task::Waker::noop())).is_pending());
        }
    }
}
