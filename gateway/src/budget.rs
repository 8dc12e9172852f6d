//! The memory that requests may use together, from their first byte until their answers have been written.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use bytes::Bytes;

use crate::mt1::DaemonError;

/// Smaller pieces of answers are counted from when the connection gets them, if at all: see `Activity`.
pub const LARGE_BYTES: usize = 16 << 10;

/// The bytes that all requests of the process may have in memory.
pub struct Budget {
    used: AtomicUsize,
    limit: usize,
    /// Of the bytes in use, those of windows, and their limit.
    windows: AtomicUsize,
    windows_limit: usize,
}

/// The bytes that one request has in memory. They are given back when it is dropped.
pub struct Held {
    budget: Arc<Budget>,
    bytes: AtomicUsize,
}

impl Budget {
    /// Args: the bytes of everything; the share of them that windows of connections may have.
    pub fn new(limit: usize, windows_limit: usize) -> Arc<Self> {
        Arc::new(Self { used: AtomicUsize::new(0), limit, windows: AtomicUsize::new(0), windows_limit })
    }

    /// Begins a request, which has no bytes yet.
    pub fn hold(self: &Arc<Self>) -> Arc<Held> {
        Arc::new(Held { budget: self.clone(), bytes: AtomicUsize::new(0) })
    }

    /// Reserves what a connection may receive before its requests are read. Returns None if windows have their share.
    pub fn reserve_window(self: &Arc<Self>, bytes: usize) -> Option<Window> {
        if self.windows.fetch_add(bytes, Relaxed).saturating_add(bytes) > self.windows_limit {
            self.windows.fetch_sub(bytes, Relaxed);
            return None;
        }
        self.count(bytes);
        Some(Window { budget: self.clone(), bytes })
    }

    /// Counts bytes that are there already, so that nothing is refused.
    pub fn count(&self, bytes: usize) {
        self.used.fetch_add(bytes, Relaxed);
    }

    /// Ends the count of these bytes.
    pub fn give_back(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Relaxed);
    }

    /// Returns the bytes that are in use.
    #[cfg(test)]
    pub fn used(&self) -> usize {
        self.used.load(Relaxed)
    }
}

/// The memory that a connection may fill before its requests are read. It is given back when it is dropped.
pub struct Window {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Drop for Window {
    fn drop(&mut self) {
        self.budget.windows.fetch_sub(self.bytes, Relaxed);
        self.budget.give_back(self.bytes);
    }
}

impl Held {
    /// Begins another request of the same budget.
    pub fn another(&self) -> Arc<Held> {
        self.budget.hold()
    }

    /// Adds bytes that the request has received.
    ///
    /// The error is RESOURCE_EXHAUSTED / `queue_full` if all requests together would have more than the limit.
    pub fn add(&self, bytes: usize) -> Result<(), DaemonError> {
        let Budget { used, limit, .. } = &*self.budget;
        if used.fetch_add(bytes, Relaxed).saturating_add(bytes) > *limit {
            used.fetch_sub(bytes, Relaxed);
            let message = format!("requests use all of the {limit} bytes that the gateway has for them; try again");
            return Err(DaemonError::queue_full(message));
        }
        self.bytes.fetch_add(bytes, Relaxed);
        Ok(())
    }

    /// Counts at least this many bytes: those of tensors that take more memory than what was received for them.
    pub fn cover(&self, bytes: usize) -> Result<(), DaemonError> {
        match bytes.saturating_sub(self.bytes.load(Relaxed)) {
            0 => Ok(()),
            missing => self.add(missing),
        }
    }

    /// Counts a piece of an answer until the connection has written it. No answer is refused, since it has been
    /// computed, but while clients do not read theirs there is less memory for further requests.
    pub fn count_answer(&self, piece: Bytes) -> Bytes {
        if piece.len() < LARGE_BYTES {
            return piece;
        }
        self.budget.count(piece.len());
        let held = Held { budget: self.budget.clone(), bytes: AtomicUsize::new(piece.len()) };
        Bytes::from_owner(Answer { piece, _held: held })
    }

    /// Counts all pieces of an answer.
    pub fn count_answers<'a>(&self, pieces: impl IntoIterator<Item = &'a mut Bytes>) {
        for piece in pieces {
            *piece = self.count_answer(std::mem::take(piece));
        }
    }
}

/// A piece of an answer, and what counts it.
struct Answer {
    piece: Bytes,
    _held: Held,
}

impl AsRef<[u8]> for Answer {
    fn as_ref(&self) -> &[u8] {
        &self.piece
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.budget.give_back(*self.bytes.get_mut());
    }
}

/// Counts what is read, such as the content of a compressed body. The error beyond the limit has a `DaemonError` in it.
pub struct Counted<'a, R> {
    reader: R,
    held: &'a Held,
}

impl<'a, R> Counted<'a, R> {
    pub fn new(reader: R, held: &'a Held) -> Self {
        Self { reader, held }
    }
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.reader.read(buffer)?;
        self.held.add(bytes).map_err(io::Error::other)?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mt1::Code;

    #[test]
    fn requests_share_the_limit_and_give_their_bytes_back() {
        let budget = Budget::new(100, 0);
        let (first, second) = (budget.hold(), budget.hold());
        first.add(60).unwrap();
        second.add(40).unwrap();
        let error = second.add(1).unwrap_err();
        assert_eq!((error.code, error.reason.as_str()), (Code::ResourceExhausted, "queue_full"));
        assert!(error.retry_after().is_some() && error.message.contains("100 bytes"));
        assert_eq!(budget.used(), 100, "what was refused is not counted");
        drop(first);
        assert_eq!(budget.used(), 40);
        second.add(60).unwrap();
        assert!(second.add(usize::MAX).is_err());
        drop(second);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn tensors_count_beyond_what_was_received_for_them() {
        let budget = Budget::new(100, 0);
        let held = budget.hold();
        held.add(30).unwrap();
        held.cover(20).unwrap();
        assert_eq!(budget.used(), 30);
        held.cover(100).unwrap();
        assert_eq!(budget.used(), 100);
        assert!(held.cover(101).is_err());
        assert!(held.another().add(1).is_err());
    }

    #[test]
    fn answers_are_counted_until_they_are_written_but_never_refused() {
        let budget = Budget::new(100_000, 0);
        let held = budget.hold();
        assert_eq!(held.count_answer(Bytes::from_static(b"small")), "small");
        assert_eq!(budget.used(), 0);
        let answer = held.count_answer(Bytes::from(vec![7; 200_000]));
        assert_eq!((answer.len(), answer[199_999], budget.used()), (200_000, 7, 200_000));
        assert!(held.add(1).is_err());
        let rest = answer.slice(100..);
        drop(answer);
        assert_eq!(budget.used(), 200_000);
        drop(rest);
        assert_eq!(budget.used(), 0);
        held.add(1).unwrap();
    }

    #[test]
    fn what_is_read_is_counted_until_the_limit() {
        let budget = Budget::new(5000, 0);
        let held = budget.hold();
        let mut content = Vec::new();
        Counted::new(&[7u8; 4000][..], &held).read_to_end(&mut content).unwrap();
        assert_eq!((content.len(), budget.used()), (4000, 4000));
        let error = Counted::new(&[7u8; 4000][..], &held).read_to_end(&mut content).unwrap_err();
        assert_eq!(error.downcast::<DaemonError>().unwrap().reason, "queue_full");
        assert!(budget.used() <= 5000);
    }

    #[test]
    fn windows_have_a_share_and_count_as_requests_do() {
        let budget = Budget::new(100, 50);
        let first = budget.reserve_window(30).unwrap();
        assert!(budget.reserve_window(30).is_none());
        assert_eq!(budget.used(), 30);
        assert!(budget.hold().add(71).is_err());
        let second = budget.reserve_window(20).unwrap();
        drop(first);
        assert_eq!(budget.used(), 20);
        drop(second);
        assert_eq!(budget.used(), 0);
        assert!(budget.reserve_window(50).is_some());
    }
}
