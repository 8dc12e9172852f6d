//! Requests that have no reply yet. No sockets, no clock.

use std::task::Waker;
use std::time::Instant;

use bytes::Bytes;

use super::error::{Code, DaemonError};
use super::handle::Handle;
use super::outgoing::Outgoing;

/// The kind of requests that run a model. All others are answered by the daemon itself.
pub const INFER: &str = "MT1:infer";

/// Places beside those for inference: queries are answered, however many requests wait for a model.
const QUERY_PLACES: usize = 64;

/// The kind that verifies a credential, with places of its own: without an answer, its clients get none either.
pub const AUTHENTICATE: &str = "MT1:authenticate";
const AUTHENTICATION_PLACES: usize = 1024;

/// A request as it is transmitted.
#[derive(Clone, Debug)]
pub struct Message {
    /// Names the client that it is sent for.
    pub handle: Handle,
    pub kind: &'static str,
    pub header: Bytes,
    pub tensors: Vec<Bytes>,
    /// Whether it is written at once, and not with those that follow before the event loop's next turn.
    pub at_once: bool,
}

/// A successful reply as it was transmitted.
#[derive(Clone, Debug, Default)]
pub struct RawReply {
    pub header: Bytes,
    pub tensors: Vec<Bytes>,
}

/// How a request ended.
pub type Outcome = Result<RawReply, DaemonError>;

/// The handle of a request: a place in the table, and which of its successive requests it is. Ids on the wire are its
/// eight bytes, so a late reply to an earlier request is never taken for that of a later one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    index: u32,
    generation: u32,
}

impl Ticket {
    pub fn id(self) -> [u8; 8] {
        (u64::from(self.generation) << 32 | u64::from(self.index)).to_be_bytes()
    }

    fn from_id(id: &[u8]) -> Option<Ticket> {
        let value = u64::from_be_bytes(id.try_into().ok()?);
        Some(Ticket { index: value as u32, generation: (value >> 32) as u32 })
    }
}

enum State {
    Free,
    /// The daemon was not connected yet.
    Unsent(Message),
    Sent,
    Done(Outcome),
}

struct Place {
    generation: u32,
    /// Names the client that the request is sent for: the daemon knows the request by that and its id.
    handle: Handle,
    state: State,
    waker: Option<Waker>,
    expires_at: Instant,
}

/// The table of requests.
pub struct Pending {
    places: Vec<Place>,
    free: Vec<u32>,
    limit: usize,
    unsent: usize,
}

impl Pending {
    /// A table for at most `limit` requests for inference. Queries have some more places.
    pub fn new(limit: usize) -> Self {
        Self { places: Vec::new(), free: Vec::new(), limit, unsent: 0 }
    }

    /// Returns how many requests are in the table.
    pub fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// Adds a request, and writes it if there is a connection to write to.
    pub fn add(
        &mut self,
        message: Message,
        expires_at: Instant,
        connection: Option<&mut Outgoing>,
    ) -> Result<Ticket, DaemonError> {
        let limit = match message.kind {
            INFER => self.limit,
            AUTHENTICATE => self.limit + QUERY_PLACES + AUTHENTICATION_PLACES,
            _ => self.limit + QUERY_PLACES,
        };
        if self.len() >= limit {
            let message = format!("the gateway has its limit of {} requests outstanding", self.limit);
            return Err(DaemonError::queue_full(message));
        }
        let index = self.free.pop().unwrap_or_else(|| {
            self.places.push(Place {
                generation: 0,
                handle: Handle::NONE,
                state: State::Free,
                waker: None,
                expires_at,
            });
            (self.places.len() - 1) as u32
        });
        let place = &mut self.places[index as usize];
        place.generation = place.generation.wrapping_add(1);
        place.expires_at = expires_at;
        place.handle = message.handle;
        let ticket = Ticket { index, generation: place.generation };
        place.state = match connection {
            Some(outgoing) => {
                outgoing.push_message(message.handle, message.kind, &ticket.id(), &message.header, &message.tensors);
                State::Sent
            }
            None => {
                self.unsent += 1;
                State::Unsent(message)
            }
        };
        Ok(ticket)
    }

    /// Takes the outcome if there is one. Otherwise keeps the waker, which `complete` wakes.
    pub fn poll(&mut self, ticket: Ticket, waker: &Waker) -> Option<Outcome> {
        let place = self.place(ticket)?;
        if matches!(place.state, State::Done(_)) {
            let State::Done(outcome) = std::mem::replace(&mut place.state, State::Free) else { return None };
            place.waker = None;
            self.free.push(ticket.index);
            return Some(outcome);
        }
        if !place.waker.as_ref().is_some_and(|known| known.will_wake(waker)) {
            place.waker = Some(waker.clone());
        }
        None
    }

    /// Removes a request whose client has given up. If the daemon has to be told, returns the handle of that client.
    pub fn remove(&mut self, ticket: Ticket) -> Option<Handle> {
        let place = self.place(ticket)?;
        let handle = place.handle;
        let state = std::mem::replace(&mut place.state, State::Free);
        place.waker = None;
        self.free.push(ticket.index);
        match state {
            State::Unsent(_) => {
                self.unsent -= 1;
                None
            }
            State::Sent => Some(handle),
            State::Free | State::Done(_) => None,
        }
    }

    /// Ends the request with this id. A late or unknown reply is ignored.
    pub fn complete(&mut self, id: &[u8], outcome: Outcome) -> Option<Waker> {
        let place = self.place(Ticket::from_id(id)?)?;
        if !matches!(place.state, State::Sent) {
            return None;
        }
        place.state = State::Done(outcome);
        place.waker.take()
    }

    /// Writes what waited for a connection, the oldest places first.
    pub fn send_unsent(&mut self, outgoing: &mut Outgoing) {
        if self.unsent == 0 {
            return;
        }
        for (index, place) in self.places.iter_mut().enumerate() {
            if matches!(place.state, State::Unsent(_))
                && let State::Unsent(message) = std::mem::replace(&mut place.state, State::Sent)
            {
                let ticket = Ticket { index: index as u32, generation: place.generation };
                outgoing.push_message(message.handle, message.kind, &ticket.id(), &message.header, &message.tensors);
            }
        }
        self.unsent = 0;
    }

    /// Ends all requests that were sent: the connection that they were sent over is lost.
    pub fn fail_sent(&mut self, wakers: &mut Vec<Waker>) {
        for place in &mut self.places {
            if matches!(place.state, State::Sent) {
                place.state = State::Done(Err(DaemonError::connection_lost()));
                wakers.extend(place.waker.take());
            }
        }
    }

    /// Ends all requests whose time is over, and cancels those that the daemon has.
    pub fn expire(&mut self, now: Instant, outgoing: &mut Outgoing, wakers: &mut Vec<Waker>) {
        if self.len() == 0 {
            return;
        }
        for (index, place) in self.places.iter_mut().enumerate() {
            if place.expires_at > now {
                continue;
            }
            let error = match place.state {
                State::Unsent(_) => {
                    self.unsent -= 1;
                    DaemonError::not_connected()
                }
                State::Sent => {
                    let ticket = Ticket { index: index as u32, generation: place.generation };
                    outgoing.push_message(place.handle, "MT1:cancel", &ticket.id(), &Bytes::new(), &[]);
                    DaemonError::new(Code::DeadlineExceeded, "deadline", "the daemon did not answer in time")
                }
                State::Free | State::Done(_) => continue,
            };
            place.state = State::Done(Err(error));
            wakers.extend(place.waker.take());
        }
    }

    fn place(&mut self, ticket: Ticket) -> Option<&mut Place> {
        let place = self.places.get_mut(ticket.index as usize)?;
        (place.generation == ticket.generation && !matches!(place.state, State::Free)).then_some(place)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn message() -> Message {
        Message {
            handle: Handle::NONE,
            kind: INFER,
            header: Bytes::from_static(b"{}"),
            tensors: vec![],
            at_once: false,
        }
    }

    fn reply() -> Outcome {
        Ok(RawReply::default())
    }

    #[test]
    fn a_late_reply_is_not_taken_for_that_of_a_later_request() {
        let (mut pending, mut outgoing, now) = (Pending::new(1), Outgoing::default(), Instant::now());
        let first = pending.add(message(), now, Some(&mut outgoing)).unwrap();
        assert!(pending.remove(first).is_some());
        let second = pending.add(message(), now, Some(&mut outgoing)).unwrap();
        pending.complete(&first.id(), reply());
        assert!(pending.poll(second, Waker::noop()).is_none());
        pending.complete(&second.id(), reply());
        assert!(pending.poll(second, Waker::noop()).is_some());
        assert_eq!(pending.len(), 0);
    }

    #[test]
    fn the_limit_is_stated_and_ends_with_a_reply() {
        let (mut pending, mut outgoing, now) = (Pending::new(2), Outgoing::default(), Instant::now());
        let first = pending.add(message(), now, Some(&mut outgoing)).unwrap();
        pending.add(message(), now, None).unwrap();
        let error = pending.add(message(), now, None).unwrap_err();
        assert_eq!((error.code, error.reason.as_str()), (Code::ResourceExhausted, "queue_full"));
        assert!(error.retry_after().is_some());
        let query = Message { kind: "MT1:status", ..message() };
        let query = pending.add(query, now, Some(&mut outgoing)).expect("a place of its own");
        assert!(pending.add(message(), now, None).is_err());
        pending.remove(query);
        assert!(pending.add(message(), now, None).is_err(), "places of queries are not for inference");
        pending.remove(first);
        pending.add(message(), now, None).unwrap();
    }

    #[test]
    fn what_was_not_sent_survives_a_lost_connection() {
        let (mut pending, mut outgoing, now) = (Pending::new(9), Outgoing::default(), Instant::now());
        let sent = pending.add(message(), now, Some(&mut outgoing)).unwrap();
        let unsent = pending.add(message(), now, None).unwrap();
        pending.fail_sent(&mut Vec::new());
        let Some(Err(error)) = pending.poll(sent, Waker::noop()) else { panic!("still pending") };
        assert_eq!(error.reason, "connection_lost");
        assert!(pending.poll(unsent, Waker::noop()).is_none());
        outgoing.clear();
        pending.send_unsent(&mut outgoing);
        assert!(!outgoing.is_empty());
        pending.complete(&unsent.id(), reply());
        assert!(matches!(pending.poll(unsent, Waker::noop()), Some(Ok(_))));
    }

    #[test]
    fn expiry_cancels_only_what_was_sent() {
        let (mut pending, mut outgoing, now) = (Pending::new(9), Outgoing::default(), Instant::now());
        let unsent = pending.add(message(), now, None).unwrap();
        pending.expire(now, &mut outgoing, &mut Vec::new());
        assert!(outgoing.is_empty());
        let Some(Err(error)) = pending.poll(unsent, Waker::noop()) else { panic!("still pending") };
        assert_eq!(error.reason, "not_connected");
        let sent = pending.add(message(), now, Some(&mut outgoing)).unwrap();
        let later = pending.add(message(), now + Duration::from_secs(9), Some(&mut outgoing)).unwrap();
        outgoing.clear();
        pending.expire(now + Duration::from_secs(1), &mut outgoing, &mut Vec::new());
        assert!(!outgoing.is_empty());
        let Some(Err(error)) = pending.poll(sent, Waker::noop()) else { panic!("still pending") };
        assert_eq!(error.code, Code::DeadlineExceeded);
        assert!(pending.poll(later, Waker::noop()).is_none());
    }
}
