//! Answers that several clients may get: with `security`, only clients with the handle that the daemon was asked with.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::load_report::LoadReports;
use super::shared_query::SharedQuery;
use super::slot_queries::SlotQueries;
use crate::mt1::Handle;

/// Handles whose answers are kept. Further ones displace those that nobody waits for.
const MAX_KEPT: usize = 64;

/// What the daemon has answered to one handle, or to everybody where it has no `security`.
pub struct Reports {
    pub status: SharedQuery,
    pub events: SharedQuery,
    pub slots: SlotQueries,
    pub metrics: SharedQuery,
    pub open_metrics: SharedQuery,
    pub load_reports: LoadReports,
}

impl Default for Reports {
    fn default() -> Self {
        Self {
            status: SharedQuery::new("MT1:status", b"{}"),
            events: SharedQuery::new("MT1:status", br#"{"events": true}"#),
            slots: SlotQueries::default(),
            metrics: SharedQuery::new("MT1:metrics", br#"{"format": "prometheus"}"#),
            open_metrics: SharedQuery::new("MT1:metrics", br#"{"format": "openmetrics"}"#),
            load_reports: LoadReports::default(),
        }
    }
}

/// Reports by the handle for which the daemon was asked.
#[derive(Default)]
pub struct ReportsByHandle {
    everybody: Arc<Reports>,
    known: Mutex<HashMap<Handle, Arc<Reports>>>,
}

impl ReportsByHandle {
    pub fn get(&self, handle: Handle) -> Arc<Reports> {
        if handle.is_none() {
            return self.everybody.clone();
        }
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX_KEPT && !known.contains_key(&handle) {
            known.retain(|_, reports| Arc::strong_count(reports) > 1);
        }
        known.entry(handle).or_default().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_handle_has_answers_of_its_own() {
        let reports = ReportsByHandle::default();
        let handle = |text: &str| Handle::new(text.as_bytes()).unwrap();
        let (first, again) = (reports.get(handle("a")), reports.get(handle("a")));
        assert!(Arc::ptr_eq(&first, &again));
        for other in [Handle::NONE, Handle::anonymous(), handle("b")] {
            assert!(!Arc::ptr_eq(&first, &reports.get(other)), "{other:?}");
        }
        for number in 0..200 {
            reports.get(handle(&number.to_string()));
        }
        assert!(reports.known.lock().unwrap().len() <= MAX_KEPT);
        assert!(Arc::ptr_eq(&first, &reports.get(handle("a"))), "somebody has it");
    }
}
