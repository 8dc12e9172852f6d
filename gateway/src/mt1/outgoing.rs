//! Bytes that wait to be written to the daemon: small frames joined, large ones as they are.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::Poll;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::AsyncWrite;
use tokio::net::UnixStream;

use super::handle::Handle;
use super::zmtp;

/// Frames up to this size are copied, so that many requests become one write.
const COPIED_BYTES: usize = 16 << 10;

/// The pieces of one write at most.
const MAX_SLICES: usize = 64;

/// What waits to be written.
#[derive(Default)]
pub struct Outgoing {
    ready: VecDeque<Bytes>,
    ready_bytes: usize,
    tail: BytesMut,
}

impl Outgoing {
    /// Adds a message: the handle if there is one, the empty delimiter, the kind, the id, and these frames.
    pub fn push_message(&mut self, handle: Handle, kind: &str, id: &[u8], header: &Bytes, tensors: &[Bytes]) {
        if !handle.is_none() {
            self.push_small(handle.as_bytes(), true);
        }
        zmtp::put_frame_head(&mut self.tail, 0, true);
        self.push_small(kind.as_bytes(), true);
        self.push_small(id, true);
        self.push_frame(header, !tensors.is_empty());
        for (index, tensor) in tensors.iter().enumerate() {
            self.push_frame(tensor, index + 1 < tensors.len());
        }
    }

    /// Adds bytes that are framed already.
    pub fn push_bytes(&mut self, bytes: &[u8]) {
        self.tail.extend_from_slice(bytes);
    }

    fn push_small(&mut self, frame: &[u8], more: bool) {
        zmtp::put_frame_head(&mut self.tail, frame.len(), more);
        self.tail.extend_from_slice(frame);
    }

    fn push_frame(&mut self, frame: &Bytes, more: bool) {
        if frame.len() <= COPIED_BYTES {
            self.push_small(frame, more);
        } else {
            zmtp::put_frame_head(&mut self.tail, frame.len(), more);
            self.ready_bytes += self.tail.len() + frame.len();
            self.ready.push_back(self.tail.split().freeze());
            self.ready.push_back(frame.clone());
        }
    }

    /// Returns the number of bytes that wait.
    pub fn len(&self) -> usize {
        self.ready_bytes + self.tail.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ready.is_empty() && self.tail.is_empty()
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.ready.clear();
        self.ready_bytes = 0;
        self.tail.clear();
    }

    /// Fills `slices` with what is next, and returns how many were filled.
    fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>; MAX_SLICES]) -> usize {
        let tail = Some(&self.tail[..]).filter(|tail| !tail.is_empty());
        let pieces = self.ready.iter().map(|piece| &piece[..]).chain(tail);
        let mut count = 0;
        for (slice, piece) in slices.iter_mut().zip(pieces) {
            *slice = IoSlice::new(piece);
            count += 1;
        }
        count
    }

    /// Drops what has been written.
    fn advance(&mut self, mut written: usize) {
        while written > 0 {
            match self.ready.front_mut() {
                Some(piece) if piece.len() > written => {
                    piece.advance(written);
                    self.ready_bytes -= written;
                    return;
                }
                Some(piece) => {
                    written -= piece.len();
                    self.ready_bytes -= piece.len();
                    self.ready.pop_front();
                }
                None => {
                    self.tail.advance(written.min(self.tail.len()));
                    if self.tail.is_empty() {
                        // Keeps the allocation, from its beginning.
                        self.tail.clear();
                    }
                    return;
                }
            }
        }
    }

    /// Writes until nothing waits any more, or `write` has no room. Fails if `write` fails or writes nothing.
    pub fn write_with(&mut self, mut write: impl FnMut(&[IoSlice<'_>]) -> Poll<io::Result<usize>>) -> io::Result<()> {
        while !self.is_empty() {
            let mut slices = Self::no_slices();
            let count = self.slices(&mut slices);
            match write(&slices[..count]) {
                Poll::Pending => break,
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(written) => self.advance(written?),
            }
        }
        Ok(())
    }

    /// Writes everything, as soon as the stream has room.
    pub async fn write_all(&mut self, stream: &mut UnixStream) -> io::Result<()> {
        poll_fn(|context| {
            self.write_with(|slices| Pin::new(&mut *stream).poll_write_vectored(context, slices))?;
            if self.is_empty() { Poll::Ready(Ok(())) } else { Poll::Pending }
        })
        .await
    }

    /// An array for `slices`.
    fn no_slices<'a>() -> [IoSlice<'a>; MAX_SLICES] {
        [IoSlice::new(&[]); MAX_SLICES]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes everything, at most `step` bytes at a time.
    fn drain(outgoing: &mut Outgoing, step: usize) -> Vec<u8> {
        let mut written = Vec::new();
        while !outgoing.is_empty() {
            let mut slices = Outgoing::no_slices();
            let count = outgoing.slices(&mut slices);
            let length = outgoing.len();
            let next: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.iter().copied()).take(step).collect();
            outgoing.advance(next.len());
            assert_eq!(outgoing.len(), length - next.len());
            written.extend(next);
        }
        written
    }

    #[test]
    fn large_frames_are_in_their_places_however_little_is_written() {
        let large = Bytes::from((0..40_000u32).map(|value| value as u8).collect::<Vec<_>>());
        let header = Bytes::from_static(b"{}");
        let write = |step| {
            let mut outgoing = Outgoing::default();
            outgoing.push_message(
                Handle::NONE,
                "MT1:infer",
                b"id",
                &header,
                &[large.clone(), Bytes::from_static(b"x")],
            );
            outgoing.push_message(Handle::anonymous(), "MT1:cancel", b"id", &Bytes::new(), &[]);
            drain(&mut outgoing, step)
        };
        let whole = write(usize::MAX);
        assert_eq!(write(7), whole);
        assert_eq!(write(16 << 10), whole);
        let mut buffer = BytesMut::from(&whole[..]);
        let mut decoder = zmtp::Decoder::default();
        let Ok(Some(zmtp::Incoming::Message(frames))) = decoder.next(&mut buffer) else { panic!("no message") };
        let expected = [&b""[..], b"MT1:infer", b"id", b"{}", &large, b"x"];
        assert_eq!(frames.iter().map(|frame| &frame[..]).collect::<Vec<_>>(), expected);
        let Ok(Some(zmtp::Incoming::Message(frames))) = decoder.next(&mut buffer) else { panic!("no message") };
        assert_eq!((frames.len(), &frames[0][..]), (5, &b"anonymous"[..]), "the handle comes first");
        assert!(buffer.is_empty());
    }
}
