//! The connection to the daemon: one task that connects again after each loss, writes what waits, and ends requests.

use std::future::poll_fn;
use std::io::{self, Write};
use std::os::unix::net;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::{Interval, MissedTickBehavior, interval, sleep, timeout};

use super::error::DaemonError;
use super::outgoing::Outgoing;
use super::pending::{Outcome, Pending, RawReply};
use super::socket::Socket;
use super::zmtp::{self, Decoder, Incoming};
use crate::log;

const HANDSHAKE: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// How often requests are looked through for those whose time is over.
const EXPIRY: Duration = Duration::from_millis(100);

const READ_BYTES: usize = 64 << 10;

/// Reads of one turn at most, so that HTTP connections get theirs.
const READS: usize = 16;

/// What the connection's task and the handlers of requests share.
pub struct Shared {
    state: Mutex<State>,
}

/// Requests, and what waits to be written.
pub struct State {
    pub pending: Pending,
    outgoing: Outgoing,
    connected: bool,
    writer: Option<Waker>,
    /// The socket that the connection's task writes to, for `write_at_once`.
    socket: Option<Arc<net::UnixStream>>,
}

impl Shared {
    pub fn new(max_outstanding: usize) -> Self {
        let pending = Pending::new(max_outstanding);
        let outgoing = Outgoing::default();
        Self { state: Mutex::new(State { pending, outgoing, connected: false, writer: None, socket: None }) }
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing within a lock panics half-way through a change, so the state is sound.
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl State {
    /// Returns the requests, and what to write new ones to if the daemon is connected. `wake` must follow.
    pub fn parts(&mut self) -> (&mut Pending, Option<&mut Outgoing>) {
        (&mut self.pending, self.connected.then_some(&mut self.outgoing))
    }

    /// Has the connection's task write, soon.
    pub fn wake(&mut self) {
        if let Some(waker) = self.writer.take() {
            waker.wake();
        }
    }

    /// Writes what waits, as far as the socket has room. The connection's task writes the rest, and notices errors.
    pub fn write_at_once(&mut self) {
        if let Some(mut socket) = self.socket.as_deref() {
            let _ = self.outgoing.write_with(|slices| match socket.write_vectored(slices) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
                outcome => Poll::Ready(outcome),
            });
        }
        if !self.outgoing.is_empty() {
            self.wake();
        }
    }
}

/// Keeps the daemon connected. Never returns.
pub async fn run(shared: Arc<Shared>, path: PathBuf, connected: watch::Sender<bool>) {
    let mut pause = FIRST_PAUSE;
    let mut reported = false;
    loop {
        // A daemon that hangs accepts the connection and is silent.
        let connecting = timeout(HANDSHAKE, connect(&path));
        match while_expiring(&shared, connecting).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok((stream, buffer)) => {
                if reported {
                    log::info("connected to the daemon again", json!({}));
                }
                {
                    let mut state = shared.lock();
                    let State { pending, outgoing, connected, .. } = &mut *state;
                    *connected = true;
                    outgoing.clear();
                    pending.send_unsent(outgoing);
                }
                connected.send_replace(true);
                pause = FIRST_PAUSE;
                let cause = exchange(&shared, stream, buffer).await;
                connected.send_replace(false);
                let mut wakers = Vec::new();
                {
                    let mut state = shared.lock();
                    state.connected = false;
                    state.socket = None;
                    state.outgoing.clear();
                    state.pending.fail_sent(&mut wakers);
                }
                let lost = wakers.len();
                wakers.into_iter().for_each(Waker::wake);
                log::warning(
                    "lost the connection to the daemon",
                    json!({"cause": cause.to_string(), "requests": lost}),
                );
                reported = true;
            }
            Err(error) => {
                if !reported {
                    log::warning("cannot connect to the daemon", json!({"cause": error.to_string()}));
                    reported = true;
                }
            }
        }
        while_expiring(&shared, sleep(pause)).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Connects and shakes hands. Returns the stream, and the bytes that were read beyond the handshake.
pub async fn connect(path: &Path) -> io::Result<(UnixStream, BytesMut)> {
    let mut stream = UnixStream::connect(path).await?;
    stream.write_all(&zmtp::greeting()).await?;
    let mut greeting = [0; zmtp::GREETING_BYTES];
    stream.read_exact(&mut greeting).await?;
    zmtp::check_greeting(&greeting).map_err(invalid)?;
    stream.write_all(&zmtp::ready()).await?;
    let (mut decoder, mut buffer) = (Decoder::default(), BytesMut::new());
    loop {
        match decoder.next(&mut buffer).map_err(invalid)? {
            Some(Incoming::Ready) => return Ok((stream, buffer)),
            Some(Incoming::Answer(bytes)) => stream.write_all(&bytes).await?,
            Some(Incoming::Message(_)) => return Err(invalid(zmtp::ProtocolError("a message came before READY"))),
            None if stream.read_buf(&mut buffer).await? == 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            None => {}
        }
    }
}

/// Reads until a reply comes, on a connection with one request.
pub async fn receive_reply(stream: &mut UnixStream, buffer: &mut BytesMut) -> io::Result<Outcome> {
    let mut decoder = Decoder::default();
    loop {
        match decoder.next(buffer).map_err(invalid)? {
            Some(Incoming::Message(frames)) => {
                if let Some((_, outcome)) = read_reply(frames) {
                    return Ok(outcome);
                }
            }
            Some(Incoming::Answer(bytes)) => stream.write_all(&bytes).await?,
            Some(Incoming::Ready) => {}
            None if stream.read_buf(buffer).await? == 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            None => {}
        }
    }
}

/// Waits for something, and meanwhile ends the requests whose time is over.
async fn while_expiring<T>(shared: &Shared, work: impl Future<Output = T>) -> T {
    let (mut work, mut ticks) = (pin!(work), interval(EXPIRY));
    loop {
        tokio::select! {
            outcome = &mut work => return outcome,
            _ = ticks.tick() => expire(shared),
        }
    }
}

fn expire(shared: &Shared) {
    let mut wakers = Vec::new();
    {
        let mut state = shared.lock();
        let State { pending, outgoing, .. } = &mut *state;
        pending.expire(Instant::now(), outgoing, &mut wakers);
    }
    wakers.into_iter().for_each(Waker::wake);
}

/// Writes and reads until the connection is lost. Returns why.
async fn exchange(shared: &Shared, stream: UnixStream, buffer: BytesMut) -> io::Error {
    let socket = match Socket::new(stream) {
        Ok(socket) => socket,
        Err(error) => return error,
    };
    shared.lock().socket = Some(socket.writer());
    let mut ticks = interval(EXPIRY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut exchange = Exchange { shared, socket, decoder: Decoder::default(), buffer, replies: Vec::new(), ticks };
    poll_fn(|context| match exchange.poll(context) {
        Ok(()) => Poll::Pending,
        Err(error) => Poll::Ready(error),
    })
    .await
}

/// A connection, and what has been read and not yet used.
struct Exchange<'a> {
    shared: &'a Shared,
    socket: Socket,
    decoder: Decoder,
    buffer: BytesMut,
    replies: Vec<(Bytes, Outcome)>,
    ticks: Interval,
}

impl Exchange<'_> {
    fn poll(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        while self.ticks.poll_tick(context).is_ready() {
            expire(self.shared);
        }
        let mut answers = Vec::new();
        let mut reads = 0;
        loop {
            while let Some(incoming) = self.decoder.next(&mut self.buffer).map_err(invalid)? {
                match incoming {
                    Incoming::Message(frames) => self.replies.extend(read_reply(frames)),
                    Incoming::Answer(bytes) => answers.push(bytes),
                    Incoming::Ready => {}
                }
            }
            if reads == READS {
                context.waker().wake_by_ref();
                break;
            }
            self.buffer.reserve(READ_BYTES);
            match self.socket.poll_read(context, &mut self.buffer) {
                Poll::Pending => break,
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Poll::Ready(Ok(_)) => reads += 1,
                Poll::Ready(Err(error)) => return Err(error),
            }
        }
        let mut state = self.shared.lock();
        let State { pending, outgoing, .. } = &mut *state;
        for (id, outcome) in self.replies.drain(..) {
            if let Some(waker) = pending.complete(&id, outcome) {
                waker.wake();
            }
        }
        for answer in answers {
            outgoing.push_bytes(&answer);
        }
        outgoing.write_with(|slices| self.socket.poll_write(context, slices))?;
        if !state.writer.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
            state.writer = Some(context.waker().clone());
        }
        Ok(())
    }
}

/// Reads `[handle] (empty) MT1:ok|MT1:error id header tensor …`. Anything else is ignored: nothing can be made of it.
///
/// Ids are those of one request each, so the handle tells nothing.
fn read_reply(mut frames: Vec<Bytes>) -> Option<(Bytes, Outcome)> {
    if frames.first().is_some_and(|first| !first.is_empty()) {
        frames.remove(0);
    }
    if frames.len() < 4 || !frames[0].is_empty() {
        return None;
    }
    let tensors = frames.split_off(4);
    let header = frames.pop()?;
    let id = frames.pop()?;
    match &frames[1][..] {
        b"MT1:ok" => Some((id, Ok(RawReply { header, tensors }))),
        b"MT1:error" => Some((id, Err(DaemonError::from_header(&header)))),
        _ => None,
    }
}

fn invalid(error: zmtp::ProtocolError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.0)
}
