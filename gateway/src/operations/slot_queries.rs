//! The queries for single slots: shared by those who ask for the same one, and few altogether.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;
use tokio::time::{Instant, sleep_until, timeout};

use super::ANSWER_LIMIT;
use super::content::Content;
use super::shared_query::{Outcome, SharedQuery};
use crate::mt1::{Daemon, DaemonError};

/// The least time between two queries. Clients that ask for many slots wait; inference does not.
const INTERVAL: Duration = Duration::from_millis(50);

/// Slots whose answers are kept. Numbers beyond them displace those that nobody waits for.
const MAX_KEPT: usize = 64;

/// One query for each slot.
#[derive(Default)]
pub struct SlotQueries {
    known: Mutex<HashMap<u32, Arc<SharedQuery>>>,
    /// From when on the daemon may be asked again.
    free_at: tokio::sync::Mutex<Option<Instant>>,
}

impl SlotQueries {
    /// Returns the status of a slot, which is half a second old at most.
    pub async fn get(&self, daemon: &Daemon, number: u32) -> Outcome {
        self.get_from(number, || async {
            let header = Bytes::from(json!({"slot": number}).to_string());
            let reply = daemon.query("MT1:status", header, ANSWER_LIMIT).await?;
            Ok(Arc::new(Content::from_reply(reply)))
        })
        .await
    }

    async fn get_from<F: Future<Output = Outcome>>(&self, number: u32, ask: impl FnOnce() -> F) -> Outcome {
        let query = self.query(number);
        query
            .get_from(|| async move {
                timeout(ANSWER_LIMIT, self.wait_turn())
                    .await
                    .map_err(|_| DaemonError::queue_full("too many requests for single slots are waiting"))?;
                ask().await
            })
            .await
    }

    fn query(&self, number: u32) -> Arc<SharedQuery> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX_KEPT && !known.contains_key(&number) {
            known.retain(|_, query| Arc::strong_count(query) > 1);
        }
        known.entry(number).or_insert_with(|| Arc::new(SharedQuery::new("MT1:status", b"{}"))).clone()
    }

    async fn wait_turn(&self) {
        let mut free_at = self.free_at.lock().await;
        if let Some(at) = *free_at {
            sleep_until(at).await;
        }
        *free_at = Some(Instant::now() + INTERVAL);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

    use ::http::HeaderValue;
    use futures_util::future::join_all;

    use super::*;

    fn content() -> Arc<Content> {
        Arc::new(Content::new(HeaderValue::from_static("text/plain"), Bytes::from_static(b"x")))
    }

    #[tokio::test]
    async fn however_many_slots_clients_ask_for_the_daemon_is_asked_at_intervals() {
        let (queries, asked, began) = (SlotQueries::default(), AtomicU32::new(0), Instant::now());
        let ask = || async {
            asked.fetch_add(1, Relaxed);
            Ok(content())
        };
        let all = (0..200).map(|number| queries.get_from(number % 100, ask));
        let outcomes = join_all(all).await;
        // The first one need not wait.
        assert!(INTERVAL * (asked.load(Relaxed) - 1) <= began.elapsed());
        assert!(asked.load(Relaxed) > 1);
        assert!(outcomes.iter().any(Result::is_err), "not all are asked within the limit");
        assert!(outcomes.iter().any(Result::is_ok));
    }

    #[tokio::test]
    async fn clients_that_ask_for_one_slot_share_its_answer() {
        let (queries, asked) = (SlotQueries::default(), AtomicU32::new(0));
        let ask = || async {
            asked.fetch_add(1, Relaxed);
            Ok(content())
        };
        assert!(join_all((0..100).map(|_| queries.get_from(3, ask))).await.iter().all(Result::is_ok));
        assert_eq!(asked.load(Relaxed), 1);
    }

    #[test]
    fn answers_of_many_numbers_are_not_kept() {
        let queries = SlotQueries::default();
        let waited_for = queries.query(7);
        for number in 0..10_000 {
            queries.query(number);
        }
        assert!(queries.known.lock().unwrap().len() <= MAX_KEPT);
        assert!(Arc::ptr_eq(&waited_for, &queries.query(7)));
    }
}
