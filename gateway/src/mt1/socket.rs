//! The connected socket: reads when something has come, and learns that it may write only when it has to wait for that.
//!
//! tokio's own `UnixStream` is woken each time that the daemon has read something, since the socket then has more room.
//! With few requests outstanding that was a third of all wake-ups.

use std::borrow::Borrow;
use std::io::{self, IoSlice, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{BufMut, BytesMut};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;

pub struct Socket {
    reader: AsyncFd<net::UnixStream>,
    /// The same socket under a descriptor of its own, since each is watched once: later there may be none left.
    writer: Arc<net::UnixStream>,
    /// Watches `writer`, while it has no room for what is to be written.
    full: Option<AsyncFd<Arc<net::UnixStream>>>,
}

impl Socket {
    /// Takes over a connected stream.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        let stream = stream.into_std()?;
        let writer = Arc::new(stream.try_clone()?);
        Ok(Self { reader: watch(stream, Interest::READABLE)?, writer, full: None })
    }

    /// Returns the socket for writes that do not wait: it never blocks.
    pub fn writer(&self) -> Arc<net::UnixStream> {
        self.writer.clone()
    }

    /// Reads into the room that the buffer has, which must not be empty. Returns 0 at the end.
    pub fn poll_read(&self, context: &mut Context<'_>, buffer: &mut BytesMut) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.reader.poll_read_ready(context))?;
            let room = buffer.chunk_mut().len();
            if let Ok(outcome) = ready.try_io(|socket| receive(socket.get_ref(), buffer)) {
                if matches!(outcome, Ok(received) if 0 < received && received < room) {
                    // Nothing is left: there will be an event when more comes.
                    ready.clear_ready();
                }
                return Poll::Ready(outcome);
            }
        }
    }

    /// Writes some of the bytes.
    pub fn poll_write(&mut self, context: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        loop {
            if let Some(full) = &self.full {
                ready!(full.poll_write_ready(context))?.clear_ready();
            }
            match (&*self.writer).write_vectored(slices) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.full.is_none() {
                        self.full = Some(watch(self.writer(), Interest::WRITABLE)?);
                    }
                }
                outcome => {
                    self.full = None;
                    return Poll::Ready(outcome);
                }
            }
        }
    }
}

fn watch<T: Borrow<net::UnixStream> + AsRawFd>(socket: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    // SAFETY: a stream owns its descriptor, which stays the same and open as long as the stream.
    Ok(unsafe { AsyncFd::register_with_interest(socket, interest) }?)
}

fn receive(socket: &net::UnixStream, buffer: &mut BytesMut) -> io::Result<usize> {
    let room = buffer.chunk_mut();
    // SAFETY: the pointer is to so many bytes, which may be uninitialised.
    let received = unsafe { libc::recv(socket.as_raw_fd(), room.as_mut_ptr().cast(), room.len(), 0) };
    let received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: that many bytes have been initialised just now.
    unsafe { buffer.advance_mut(received) };
    Ok(received)
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::timeout;

    use super::*;

    const BYTES: usize = 4 << 20;

    #[tokio::test]
    async fn what_has_no_room_is_written_when_the_peer_has_read() {
        let (ours, mut peer) = UnixStream::pair().unwrap();
        let mut socket = Socket::new(ours).unwrap();
        let content: Vec<u8> = (0..BYTES).map(|index| (index / 7) as u8).collect();
        let writing = async {
            let mut written = 0;
            while written < BYTES {
                let rest = [IoSlice::new(&content[written..])];
                written += poll_fn(|context| socket.poll_write(context, &rest)).await.unwrap();
            }
        };
        let mut read = vec![0; BYTES];
        let both = async { tokio::join!(writing, peer.read_exact(&mut read)) };
        timeout(Duration::from_secs(30), both).await.expect("all is written").1.unwrap();
        assert!(read == content);
        assert!(socket.full.is_none());
    }

    /// Returns the number of this process's descriptors for a socket.
    fn descriptors_of(socket: &net::UnixStream) -> usize {
        let name = |entry: std::path::PathBuf| std::fs::read_link(entry).ok();
        let wanted = name(format!("/proc/self/fd/{}", socket.as_raw_fd()).into());
        let all = std::fs::read_dir("/proc/self/fd").unwrap();
        all.filter(|entry| name(entry.as_ref().unwrap().path()) == wanted).count()
    }

    #[tokio::test]
    async fn a_full_socket_takes_no_further_descriptor() {
        let (ours, _peer) = UnixStream::pair().unwrap();
        let mut socket = Socket::new(ours).unwrap();
        let before = descriptors_of(&socket.writer());
        let content = [IoSlice::new(&[0; BYTES])];
        let full = poll_fn(|context| {
            while socket.poll_write(context, &content).is_ready() {}
            Poll::Ready(socket.full.is_some())
        });
        assert!(full.await);
        assert_eq!(descriptors_of(&socket.writer()), before);
    }

    #[tokio::test]
    async fn all_is_read_however_it_comes_and_then_the_end() {
        let (ours, mut peer) = UnixStream::pair().unwrap();
        let socket = Socket::new(ours).unwrap();
        let content: Vec<u8> = (0..BYTES).map(|index| (index / 7) as u8).collect();
        let writing = async {
            for piece in content.chunks(77_777) {
                peer.write_all(piece).await.unwrap();
                tokio::task::yield_now().await;
            }
            drop(peer);
        };
        let reading = async {
            let mut buffer = BytesMut::new();
            loop {
                buffer.reserve(10_000);
                if poll_fn(|context| socket.poll_read(context, &mut buffer)).await.unwrap() == 0 {
                    return buffer;
                }
            }
        };
        let both = async { tokio::join!(writing, reading) };
        let ((), read) = timeout(Duration::from_secs(30), both).await.expect("all is read");
        assert!(read == content);
    }
}
