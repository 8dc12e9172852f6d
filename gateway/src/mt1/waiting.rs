//! A request that has been handed over, as a future: dropping it cancels the request.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;

use super::connection::Shared;
use super::pending::{Outcome, Ticket};

/// The outcome of a request, some time.
pub struct Waiting {
    shared: Arc<Shared>,
    ticket: Ticket,
    done: bool,
}

impl Waiting {
    pub fn new(shared: Arc<Shared>, ticket: Ticket) -> Self {
        Self { shared, ticket, done: false }
    }
}

impl Future for Waiting {
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let outcome = self.shared.lock().pending.poll(self.ticket, context.waker());
        match outcome {
            Some(outcome) => {
                self.done = true;
                Poll::Ready(outcome)
            }
            None => Poll::Pending,
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let mut state = self.shared.lock();
        let (pending, connection) = state.parts();
        if let Some(handle) = pending.remove(self.ticket)
            && let Some(outgoing) = connection
        {
            outgoing.push_message(handle, "MT1:cancel", &self.ticket.id(), &Bytes::new(), &[]);
            state.wake();
        }
    }
}
