//! One query for all clients that ask the same at about the same time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::Mutex;

use super::ANSWER_LIMIT;
use super::content::Content;
use crate::mt1::{Daemon, DaemonError};

/// How old an answer may be. However many clients ask, the daemon answers twice a second at most.
const MAX_AGE: Duration = Duration::from_millis(500);

pub type Outcome = Result<Arc<Content>, DaemonError>;

/// A query that has the same answer for all clients.
pub struct SharedQuery {
    kind: &'static str,
    header: &'static [u8],
    /// The last outcome, and when it was known. The task that asks the daemon holds this lock; the others
    /// wait for it.
    last: Mutex<Option<(Instant, Outcome)>>,
}

impl SharedQuery {
    pub fn new(kind: &'static str, header: &'static [u8]) -> Self {
        Self { kind, header, last: Mutex::default() }
    }

    /// Returns an answer that is half a second old at most. An error is shared as well.
    pub async fn get(&self, daemon: &Daemon) -> Outcome {
        self.get_from(|| async {
            let header = Bytes::from_static(self.header);
            daemon.query(self.kind, header, ANSWER_LIMIT).await.map(|reply| Arc::new(Content::from_reply(reply)))
        })
        .await
    }

    /// Returns an answer as `get` does, from `ask` instead of the daemon.
    pub async fn get_from<F: Future<Output = Outcome>>(&self, ask: impl FnOnce() -> F) -> Outcome {
        let mut last = self.last.lock().await;
        match &*last {
            Some((at, outcome)) if at.elapsed() < MAX_AGE => outcome.clone(),
            _ => {
                let outcome = ask().await;
                *last = Some((Instant::now(), outcome.clone()));
                outcome
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use ::http::HeaderValue;
    use futures_util::future::join_all;

    use super::*;

    #[tokio::test]
    async fn clients_that_ask_together_share_one_answer() {
        let (query, asked) = (SharedQuery::new("MT1:status", b"{}"), AtomicUsize::new(0));
        let ask = || async {
            asked.fetch_add(1, Relaxed);
            tokio::task::yield_now().await;
            Ok(Arc::new(Content::new(HeaderValue::from_static("text/plain"), Bytes::from_static(b"x"))))
        };
        assert!(join_all((0..10).map(|_| query.get_from(ask))).await.iter().all(Result::is_ok));
        assert_eq!(asked.load(Relaxed), 1);
        // A client that goes while it asks leaves the question to the next one.
        let query = SharedQuery::new("MT1:status", b"{}");
        drop(tokio::time::timeout(Duration::ZERO, query.get_from(std::future::pending)).await);
        assert!(query.get_from(ask).await.is_ok());
        assert_eq!(asked.load(Relaxed), 2);
    }

    #[tokio::test]
    async fn an_error_is_shared_by_those_who_waited_for_it() {
        let (query, asked) = (SharedQuery::new("MT1:status", b"{}"), AtomicUsize::new(0));
        let ask = || async {
            asked.fetch_add(1, Relaxed);
            tokio::task::yield_now().await;
            Err(DaemonError::not_connected())
        };
        assert!(join_all((0..10).map(|_| query.get_from(ask))).await.iter().all(Result::is_err));
        assert_eq!(asked.load(Relaxed), 1);
    }
}
