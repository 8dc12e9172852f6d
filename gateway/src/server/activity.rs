//! What a connection is doing, so that one that is silent, slow or stuck can be closed.
//!
//! Each connection records what happens to it; once in a while `Registry::sweep` looks at all of them. So no request
//! needs a timer of its own.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Sleep, sleep};

use super::client::Client;
use crate::budget::Budget;
use crate::http::SLOWEST_BYTES_PER_S;
use crate::settings::Limits;

/// No time: what is measured has not begun, or has ended.
const NEVER: u64 = 0;

/// The idle time of a connection while the limit of connections is reached: idle ones make room for others.
const CROWDED_IDLE: Duration = Duration::from_secs(1);

/// How long a connection may be without a request, or within its handshake, while others wait for its place. Where
/// requests need credentials, also without a request that had a valid one.
const CROWDED_FIRST: Duration = Duration::from_secs(1);

/// What happens to one connection. Times are milliseconds since its beginning, plus one.
pub struct Activity {
    budget: Arc<Budget>,
    began: Instant,
    /// Requests whose response has not been handed over entirely.
    open: AtomicU32,
    /// Requests so far.
    requests: AtomicU64,
    /// Pieces of responses that have been handed over and are not written yet.
    unwritten: Mutex<Unwritten>,
    /// When the head of the next request began to arrive.
    head_at: AtomicU64,
    /// When the socket stopped taking bytes.
    blocked_at: AtomicU64,
    /// When the last request ended.
    idle_at: AtomicU64,
    /// HTTP/2 connections have traffic between requests.
    http2: AtomicBool,
    /// Held until the first request: connections without one are bounded apart from the others.
    newcomer: Mutex<Option<OwnedSemaphorePermit>>,
    /// Who is at the other end, where requests need credentials or the connection has TLS.
    client: Option<Client>,
    verdict: AtomicU32,
    waker: Mutex<Option<Waker>>,
}

/// What others wait for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Crowd {
    /// A place among all connections.
    pub connections: bool,
    /// A place among the connections without a request.
    pub newcomers: bool,
}

/// What a connection's task has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Continue,
    /// End after the requests that have begun.
    Finish,
    Close,
}

/// The time in which a connection that is to end still takes a request, since its client may have sent one already.
pub struct LastRequest {
    time: Duration,
    over: Option<Pin<Box<Sleep>>>,
}

impl LastRequest {
    pub fn new(time: Duration) -> Self {
        Self { time, over: None }
    }

    /// Whether the time is over; it begins with the first call.
    pub fn poll_over(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.over.get_or_insert_with(|| Box::pin(sleep(self.time))).as_mut().poll(context)
    }
}

impl Activity {
    /// `budget` counts the pieces of responses that are not counted before.
    pub fn new(budget: Arc<Budget>, newcomer: Option<OwnedSemaphorePermit>, client: Option<Client>) -> Self {
        Self {
            budget,
            began: Instant::now(),
            open: AtomicU32::new(0),
            requests: AtomicU64::new(0),
            unwritten: Mutex::default(),
            head_at: AtomicU64::new(NEVER),
            blocked_at: AtomicU64::new(NEVER),
            idle_at: AtomicU64::new(NEVER),
            http2: AtomicBool::new(false),
            newcomer: Mutex::new(newcomer),
            client,
            verdict: AtomicU32::new(Verdict::Continue as u32),
            waker: Mutex::new(None),
        }
    }

    fn now(&self) -> u64 {
        self.began.elapsed().as_millis() as u64 + 1
    }

    /// A request's head has been read.
    pub fn request_began(&self, http2: bool) {
        self.open.fetch_add(1, Relaxed);
        if self.requests.fetch_add(1, Relaxed) == 0 {
            drop(self.newcomer.lock().unwrap_or_else(PoisonError::into_inner).take());
        }
        self.head_at.store(NEVER, Relaxed);
        self.http2.store(http2, Relaxed);
    }

    /// The response of a request has been handed over, or its client has gone.
    pub fn request_ended(&self) {
        self.open.fetch_sub(1, Relaxed);
        self.idle_at.store(self.now(), Relaxed);
    }

    /// Whether everything that is written now is a response to one of so many requests: none is open.
    pub fn requests_if_none_is_open(&self) -> Option<u64> {
        (self.open.load(Relaxed) == 0).then(|| self.requests.load(Relaxed))
    }

    /// A piece of a response has been handed over. Returns its number for `piece_written`.
    pub fn piece_handed_over(&self, bytes: usize) -> u32 {
        self.unwritten().add(self.now(), bytes)
    }

    /// A piece has been written, or was given up.
    pub fn piece_written(&self, number: u32, bytes: usize) {
        self.unwritten().remove(number, bytes);
    }

    /// Returns who is at the other end, where that matters.
    pub fn client(&self) -> Option<&Client> {
        self.client.as_ref()
    }

    /// Waits until the connection is to end although it has had no request.
    pub async fn until_ending(&self, last_request: &mut LastRequest) {
        poll_fn(|context| self.poll_ending(context, last_request)).await;
    }

    /// Whether the connection is to end although it has no request.
    pub fn poll_ending(&self, context: &mut Context<'_>, last_request: &mut LastRequest) -> Poll<()> {
        match self.verdict(context.waker()) {
            Verdict::Continue => Poll::Pending,
            Verdict::Finish => last_request.poll_over(context),
            Verdict::Close => Poll::Ready(()),
        }
    }

    /// Whether the connection is to end: it takes no request after the one that it has.
    pub fn is_ending(&self) -> bool {
        self.verdict.load(Relaxed) != Verdict::Continue as u32
    }

    /// Whether the connection has a request.
    pub fn has_request(&self) -> bool {
        self.open.load(Relaxed) > 0
    }

    /// Ends the connection after the requests that have begun.
    pub fn finish(&self) {
        self.decide(Verdict::Finish);
    }

    /// Returns what counts the memory of responses.
    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    fn unwritten(&self) -> MutexGuard<'_, Unwritten> {
        self.unwritten.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The socket has given bytes.
    pub fn bytes_read(&self) {
        if self.open.load(Relaxed) == 0 && self.head_at.load(Relaxed) == NEVER {
            self.head_at.store(self.now(), Relaxed);
        }
    }

    /// The socket has taken bytes.
    pub fn bytes_written(&self) {
        if self.blocked_at.load(Relaxed) != NEVER {
            self.blocked_at.store(NEVER, Relaxed);
        }
    }

    /// The socket takes no bytes.
    pub fn write_blocked(&self) {
        if self.blocked_at.load(Relaxed) == NEVER {
            self.blocked_at.store(self.now(), Relaxed);
        }
    }

    /// Returns what to do, and has the caller woken when that changes.
    pub fn verdict(&self, waker: &Waker) -> Verdict {
        let mut known = self.waker.lock().unwrap_or_else(PoisonError::into_inner);
        if !known.as_ref().is_some_and(|known| known.will_wake(waker)) {
            *known = Some(waker.clone());
        }
        match self.verdict.load(Relaxed) {
            value if value == Verdict::Close as u32 => Verdict::Close,
            value if value == Verdict::Finish as u32 => Verdict::Finish,
            _ => Verdict::Continue,
        }
    }

    fn decide(&self, verdict: Verdict) {
        if self.verdict.fetch_max(verdict as u32, Relaxed) < verdict as u32
            && let Some(waker) = self.waker.lock().unwrap_or_else(PoisonError::into_inner).take()
        {
            waker.wake();
        }
    }

    /// Whether the connection has used up its time, at `now`.
    fn is_over(&self, now: u64, limits: &Limits, crowd: Crowd) -> bool {
        let exceeded = |since: u64, limit: Duration| since != NEVER && now.saturating_sub(since) > millis(limit);
        if exceeded(self.blocked_at.load(Relaxed), limits.body_timeout()) {
            return true;
        }
        let is_unknown = || self.client.as_ref().is_some_and(Client::is_unknown);
        let open = self.open.load(Relaxed) > 0;
        if crowd.connections && is_unknown() && exceeded(1, if open { limits.header_timeout() } else { CROWDED_FIRST })
        {
            return true;
        }
        let oldest = self.unwritten().oldest();
        if oldest.is_some_and(|since| exceeded(since, limits.body_timeout())) {
            return true;
        }
        if open || oldest.is_some() {
            return false; // reading its body and waiting for the daemon have limits of their own
        }
        if self.requests.load(Relaxed) == 0 {
            let first = limits.header_timeout();
            return exceeded(1, if crowd.newcomers { first.min(CROWDED_FIRST) } else { first });
        }
        if !self.http2.load(Relaxed) && exceeded(self.head_at.load(Relaxed), limits.header_timeout()) {
            return true;
        }
        let idle = if crowd.connections { limits.idle_timeout().min(CROWDED_IDLE) } else { limits.idle_timeout() };
        exceeded(self.idle_at.load(Relaxed), idle)
    }
}

/// The pieces of responses that a connection has and has not written yet.
///
/// A piece that is handed over may wait long: in HTTP/2 each stream waits for its client, while others go on.
#[derive(Default)]
struct Unwritten {
    /// When each piece was handed over, plus the time that all pieces of then need at least; `NEVER` for a free place.
    since: Vec<u64>,
    free: Vec<u32>,
    /// Of all pieces.
    bytes: usize,
}

impl Unwritten {
    fn add(&mut self, now: u64, bytes: usize) -> u32 {
        self.bytes += bytes;
        let since = now + millis(Duration::from_secs((self.bytes / SLOWEST_BYTES_PER_S) as u64));
        match self.free.pop() {
            Some(number) => {
                self.since[number as usize] = since;
                number
            }
            None => {
                self.since.push(since);
                (self.since.len() - 1) as u32
            }
        }
    }

    fn remove(&mut self, number: u32, bytes: usize) {
        self.bytes -= bytes;
        self.since[number as usize] = NEVER;
        self.free.push(number);
    }

    /// Returns the earliest time of a piece that is not written.
    fn oldest(&self) -> Option<u64> {
        self.since.iter().copied().filter(|&since| since != NEVER).min()
    }
}

fn millis(duration: Duration) -> u64 {
    duration.as_millis() as u64
}

/// The connections of one event loop.
#[derive(Default)]
pub struct Registry {
    connections: Mutex<Vec<Arc<Activity>>>,
}

impl Registry {
    pub fn add(
        &self,
        budget: Arc<Budget>,
        newcomer: Option<OwnedSemaphorePermit>,
        client: Option<Client>,
    ) -> Arc<Activity> {
        let activity = Arc::new(Activity::new(budget, newcomer, client));
        self.connections.lock().unwrap_or_else(PoisonError::into_inner).push(activity.clone());
        activity
    }

    pub fn remove(&self, activity: &Arc<Activity>) {
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(index) = connections.iter().position(|known| Arc::ptr_eq(known, activity)) {
            connections.swap_remove(index);
        }
    }

    pub fn len(&self) -> usize {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Closes the connections that have used up their time, and those of clients that may do nothing any more.
    pub fn sweep(&self, limits: &Limits, crowd: Crowd) {
        for activity in self.connections.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            if activity.is_over(activity.now(), limits, crowd)
                || activity.client.as_ref().is_some_and(Client::is_refused)
            {
                activity.decide(Verdict::Close);
            }
        }
    }

    /// Ends all connections, after the requests that have begun.
    pub fn finish(&self) {
        for activity in self.connections.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            activity.decide(Verdict::Finish);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::server::watched::OpenRequest;

    const SECOND: u64 = 1000;
    const CROWDED: Crowd = Crowd { connections: true, newcomers: false };

    fn activity() -> Arc<Activity> {
        Arc::new(Activity::new(Budget::new(1 << 20, 0), None, None))
    }

    fn over(activity: &Activity, at: u64) -> bool {
        activity.is_over(at, &Limits::default(), Crowd::default())
    }

    #[test]
    fn a_silent_connection_has_the_time_of_a_head() {
        let activity = activity();
        assert!(!over(&activity, 10 * SECOND));
        assert!(over(&activity, 11 * SECOND));
        activity.bytes_read();
        assert!(over(&activity, 11 * SECOND));
    }

    #[test]
    fn a_connection_without_a_request_makes_room_for_others() {
        let permits = Arc::new(tokio::sync::Semaphore::new(1));
        let permit = permits.clone().try_acquire_owned().unwrap();
        let activity = Arc::new(Activity::new(Budget::new(1 << 20, 0), Some(permit), None));
        let crowd = Crowd { connections: false, newcomers: true };
        assert!(!activity.is_over(SECOND, &Limits::default(), crowd));
        assert!(activity.is_over(3 * SECOND, &Limits::default(), crowd));
        assert_eq!(permits.available_permits(), 0);
        let _request = OpenRequest::begin(activity.clone(), false);
        assert_eq!(permits.available_permits(), 1, "it is no newcomer any more");
        assert!(!activity.is_over(3 * SECOND, &Limits::default(), crowd));
    }

    #[test]
    fn whoever_shows_no_credential_makes_room_for_others() {
        for (locked, ends) in [(true, true), (false, false)] {
            let client = Client::new("1.2.3.4:5".to_owned(), locked);
            let activity = Arc::new(Activity::new(Budget::new(1 << 20, 0), None, Some(client)));
            drop(OpenRequest::begin(activity.clone(), true));
            let watching = OpenRequest::begin(activity.clone(), true);
            assert!(!activity.is_over(5 * SECOND, &Limits::default(), CROWDED), "it may be verified now");
            assert!(!over(&activity, 100 * SECOND), "nobody waits");
            assert_eq!(activity.is_over(100 * SECOND, &Limits::default(), CROWDED), ends);
            drop(watching);
            activity.idle_at.store(100 * SECOND, Relaxed);
            assert_eq!(
                activity.is_over(100 * SECOND, &Limits::default(), CROWDED),
                ends,
                "although it was busy just now"
            );
        }
    }

    #[test]
    fn a_request_takes_as_long_as_it_takes_and_the_next_head_has_its_time() {
        let activity = activity();
        let request = OpenRequest::begin(activity.clone(), false);
        assert!(!over(&activity, 1000 * SECOND));
        drop(request);
        assert!(!over(&activity, 300 * SECOND));
        assert!(over(&activity, 302 * SECOND));
        assert!(activity.is_over(2 * SECOND, &Limits::default(), CROWDED));
        activity.bytes_read();
        assert!(!over(&activity, 9 * SECOND));
        assert!(over(&activity, 12 * SECOND));
    }

    #[test]
    fn frames_between_requests_of_http2_are_no_head() {
        let activity = activity();
        drop(OpenRequest::begin(activity.clone(), true));
        activity.bytes_read();
        assert!(!over(&activity, 299 * SECOND));
        assert!(over(&activity, 302 * SECOND));
    }

    #[test]
    fn a_socket_that_takes_nothing_is_closed_also_within_a_request() {
        let activity = activity();
        let _request = OpenRequest::begin(activity.clone(), false);
        activity.write_blocked();
        assert!(!over(&activity, 60 * SECOND));
        assert!(over(&activity, 62 * SECOND));
        activity.bytes_written();
        assert!(!over(&activity, 62 * SECOND));
    }

    #[test]
    fn a_piece_that_is_not_written_ends_its_connection_whatever_others_do() {
        let activity = activity();
        let _request = OpenRequest::begin(activity.clone(), true);
        let forgotten = activity.piece_handed_over(100);
        for _ in 0..3 {
            let written = activity.piece_handed_over(100);
            activity.piece_written(written, 100);
        }
        assert!(!over(&activity, 60 * SECOND));
        assert!(over(&activity, 62 * SECOND));
        activity.piece_written(forgotten, 100);
        assert!(!over(&activity, 62 * SECOND));
    }

    #[test]
    fn a_large_piece_has_more_time_and_its_connection_is_not_idle() {
        let activity = activity();
        drop(OpenRequest::begin(activity.clone(), false));
        let large = activity.piece_handed_over(1000 * SLOWEST_BYTES_PER_S);
        assert!(!over(&activity, 1059 * SECOND));
        assert!(!activity.is_over(1059 * SECOND, &Limits::default(), CROWDED));
        assert!(over(&activity, 1062 * SECOND));
        activity.piece_written(large, 1000 * SLOWEST_BYTES_PER_S);
        assert!(over(&activity, 1059 * SECOND), "it is idle then");
    }

    #[test]
    fn a_verdict_never_becomes_milder() {
        let registry = Registry::default();
        let activity = registry.add(Budget::new(0, 0), None, None);
        assert_eq!(activity.verdict(Waker::noop()), Verdict::Continue);
        activity.decide(Verdict::Close);
        registry.finish();
        assert_eq!(activity.verdict(Waker::noop()), Verdict::Close);
        registry.remove(&activity);
        assert_eq!(registry.len(), 0);
    }
}
