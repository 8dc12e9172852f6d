//! What the gateway counts since its start: connections, requests by interface and status, bytes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use ::http::StatusCode;
use serde_json::{Value, json};

use crate::grpc;
use crate::http::Response;
use crate::mt1::Code;

/// The interface that a request uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interface {
    TensorflowServingRest,
    TensorflowServingGrpc,
    OpenInferenceHttp,
    OpenInferenceGrpc,
    /// The gateway's own paths, and paths that do not exist.
    OperationsHttp,
    /// Health checks and reflection, and services that do not exist.
    OperationsGrpc,
}

const INTERFACES: [Interface; 6] = [
    Interface::TensorflowServingRest,
    Interface::TensorflowServingGrpc,
    Interface::OpenInferenceHttp,
    Interface::OpenInferenceGrpc,
    Interface::OperationsHttp,
    Interface::OperationsGrpc,
];

impl Interface {
    /// Returns its name in records.
    pub fn name(self) -> &'static str {
        match self {
            Self::TensorflowServingRest => "tensorflow_serving_rest",
            Self::TensorflowServingGrpc => "tensorflow_serving_grpc",
            Self::OpenInferenceHttp => "open_inference_http",
            Self::OpenInferenceGrpc => "open_inference_grpc",
            Self::OperationsHttp | Self::OperationsGrpc => "operations",
        }
    }

    pub fn is_grpc(self) -> bool {
        matches!(self, Self::TensorflowServingGrpc | Self::OpenInferenceGrpc | Self::OperationsGrpc)
    }

    /// Whether requests count in the totals of requests and errors: those of operators do not.
    fn is_inference(self) -> bool {
        !matches!(self, Self::OperationsHttp | Self::OperationsGrpc)
    }
}

/// Places for statuses: gRPC's numbers, and HTTP's codes from 100 on.
const STATUSES: usize = 600;
const FIRST_HTTP: usize = 100;

const GRPC_OK: u16 = 0;
/// "Client closed request", as nginx has it: the client has gone before it was answered.
const HTTP_CANCELLED: u16 = 499;

/// Totals since the start, over all event loops.
pub struct Statistics {
    pub connections: AtomicU64,
    requests: AtomicU64,
    errors: AtomicU64,
    outstanding: AtomicU64,
    received_bytes: AtomicU64,
    sent_bytes: AtomicU64,
    /// When the certificate expires, in seconds since 1970; `UNKNOWN` without one.
    certificate_expiry: AtomicU64,
    /// Requests by interface and status.
    by_status: Box<[AtomicU64]>,
}

const UNKNOWN: u64 = u64::MAX;

impl Default for Statistics {
    fn default() -> Self {
        Self {
            connections: AtomicU64::default(),
            requests: AtomicU64::default(),
            errors: AtomicU64::default(),
            outstanding: AtomicU64::default(),
            received_bytes: AtomicU64::default(),
            sent_bytes: AtomicU64::default(),
            certificate_expiry: AtomicU64::new(UNKNOWN),
            by_status: (0..INTERFACES.len() * STATUSES).map(|_| AtomicU64::default()).collect(),
        }
    }
}

impl Statistics {
    /// Counts bytes that a socket has received.
    pub fn received(&self, bytes: usize) {
        self.received_bytes.fetch_add(bytes as u64, Relaxed);
    }

    /// Counts bytes that a socket has sent.
    pub fn sent(&self, bytes: usize) {
        self.sent_bytes.fetch_add(bytes as u64, Relaxed);
    }

    /// Notes when the certificate expires, in seconds since 1970.
    pub fn set_certificate_expiry(&self, expiry: Option<u64>) {
        self.certificate_expiry.store(expiry.unwrap_or(UNKNOWN), Relaxed);
    }

    /// Returns when the certificate expires, in seconds since 1970; None without one, or if its date cannot be read.
    pub fn certificate_expiry(&self) -> Option<u64> {
        Some(self.certificate_expiry.load(Relaxed)).filter(|&expiry| expiry != UNKNOWN)
    }

    /// Returns the requests for inference that have no answer yet.
    pub fn outstanding(&self) -> u64 {
        self.outstanding.load(Relaxed)
    }

    /// Counts an answer, or a client that did not wait for one.
    fn count(&self, interface: Interface, status: u16, is_error: bool) {
        if let Some(counter) = self.by_status.get(interface as usize * STATUSES + usize::from(status)) {
            counter.fetch_add(1, Relaxed);
        }
        if is_error && interface.is_inference() {
            self.errors.fetch_add(1, Relaxed);
        }
    }

    /// Returns all totals.
    pub fn totals(&self) -> Totals {
        let by_status = INTERFACES.into_iter().flat_map(|interface| {
            let counters = &self.by_status[interface as usize * STATUSES..][..STATUSES];
            let counts = counters.iter().map(|counter| counter.load(Relaxed)).enumerate();
            counts.filter(|&(_, count)| count > 0).map(move |(status, count)| (interface, status, count))
        });
        Totals {
            connections: self.connections.load(Relaxed),
            requests: self.requests.load(Relaxed),
            errors: self.errors.load(Relaxed),
            outstanding: self.outstanding.load(Relaxed),
            received_bytes: self.received_bytes.load(Relaxed),
            sent_bytes: self.sent_bytes.load(Relaxed),
            certificate_expiry: self.certificate_expiry(),
            by_status: by_status.collect(),
        }
    }
}

/// The totals at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    connections: u64,
    requests: u64,
    errors: u64,
    outstanding: u64,
    received_bytes: u64,
    sent_bytes: u64,
    certificate_expiry: Option<u64>,
    by_status: Vec<(Interface, usize, u64)>,
}

impl Totals {
    /// Whether there have been no requests for inference since other totals, and there are none now.
    pub fn is_idle_since(&self, earlier: &Totals) -> bool {
        self.outstanding == 0 && self.requests == earlier.requests
    }

    /// Returns the requests and the errors a second since other totals, which were taken `time` ago.
    pub fn rates_since(&self, earlier: &Totals, time: Duration) -> (f64, f64) {
        let rate = |now: u64, before: u64| now.saturating_sub(before) as f64 / time.as_secs_f64().max(0.001);
        (rate(self.requests, earlier.requests), rate(self.errors, earlier.errors))
    }

    /// Returns the record for the daemon.
    pub fn to_record(&self) -> Value {
        // Interfaces that share a name share their counts: the operators' over HTTP, and what is no call over gRPC.
        let mut counts: BTreeMap<(usize, String), (&str, u64)> = BTreeMap::new();
        for &(interface, status, count) in &self.by_status {
            let status = match status {
                FIRST_HTTP.. => status.to_string(),
                _ => grpc::code_name(status as u16).to_owned(),
            };
            let first = INTERFACES.iter().position(|each| each.name() == interface.name()).unwrap_or_default();
            counts.entry((first, status)).or_insert((interface.name(), 0)).1 += count;
        }
        let by_status: Vec<Value> =
            counts.into_iter().map(|((_, status), (name, count))| json!([name, status, count])).collect();
        json!({"record": "statistics", "connections": self.connections, "requests": self.requests,
               "errors": self.errors, "outstanding": self.outstanding, "received_bytes": self.received_bytes,
               "sent_bytes": self.sent_bytes, "certificate_not_after": self.certificate_expiry, "by_status": by_status})
    }
}

/// A request until its response is made. If it is dropped before that, its client has gone.
pub struct Unanswered {
    statistics: Arc<Statistics>,
    interface: Interface,
    answered: bool,
}

impl Unanswered {
    pub fn begin(statistics: Arc<Statistics>, interface: Interface) -> Self {
        if interface.is_inference() {
            statistics.requests.fetch_add(1, Relaxed);
            statistics.outstanding.fetch_add(1, Relaxed);
        }
        Self { statistics, interface, answered: false }
    }

    /// Counts the response. The status of a gRPC call may come last: then this returns what counts it.
    pub fn answer(mut self, response: &Response) -> Option<UncountedCall> {
        self.answered = true;
        if !self.interface.is_grpc() {
            let status = response.status();
            let is_error = status.is_client_error() || status.is_server_error();
            self.statistics.count(self.interface, status.as_u16(), is_error);
            return None;
        }
        match (response.status(), grpc::status_of(response.headers())) {
            (StatusCode::OK, Some(status)) => self.statistics.count(self.interface, status, status != GRPC_OK),
            (StatusCode::OK, None) => {
                return Some(UncountedCall { statistics: self.statistics.clone(), interface: self.interface });
            }
            // What is no call at all, such as a GET.
            (status, _) => self.statistics.count(self.interface, status.as_u16(), true),
        }
        None
    }
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        if self.interface.is_inference() {
            self.statistics.outstanding.fetch_sub(1, Relaxed);
        }
        if !self.answered {
            let cancelled = grpc::status_number(Code::Cancelled);
            let status = if self.interface.is_grpc() { cancelled } else { HTTP_CANCELLED };
            self.statistics.count(self.interface, status, false);
        }
    }
}

/// A gRPC call whose response has begun, and whose status follows.
pub struct UncountedCall {
    statistics: Arc<Statistics>,
    interface: Interface,
}

impl UncountedCall {
    /// Counts the call: by its status, or as cancelled if its client has gone before that.
    pub fn end(self, status: Option<u16>) {
        let cancelled = grpc::status_number(Code::Cancelled);
        let is_error = status.is_some_and(|status| status != GRPC_OK);
        self.statistics.count(self.interface, status.unwrap_or(cancelled), is_error);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grpc::Services;
    use crate::http::{Body, response};

    fn by_status(statistics: &Statistics) -> Value {
        statistics.totals().to_record()["by_status"].clone()
    }

    #[test]
    fn requests_are_counted_by_interface_and_status() {
        let statistics = Arc::new(Statistics::default());
        for (interface, status) in [
            (Interface::OpenInferenceHttp, StatusCode::OK),
            (Interface::OpenInferenceHttp, StatusCode::OK),
            (Interface::TensorflowServingRest, StatusCode::NOT_FOUND),
            (Interface::OperationsHttp, StatusCode::NOT_FOUND),
        ] {
            let unanswered = Unanswered::begin(statistics.clone(), interface);
            assert!(unanswered.answer(&response(status, Body::Empty)).is_none());
        }
        drop(Unanswered::begin(statistics.clone(), Interface::OpenInferenceHttp));
        let expected = json!([
            ["tensorflow_serving_rest", "404", 1],
            ["open_inference_http", "200", 2],
            ["open_inference_http", "499", 1],
            ["operations", "404", 1]
        ]);
        assert_eq!(by_status(&statistics), expected);
        let record = statistics.totals().to_record();
        assert_eq!((&record["requests"], &record["errors"], &record["outstanding"]), (&json!(4), &json!(1), &json!(0)));
    }

    #[test]
    fn a_status_of_operators_is_counted_once_over_both_of_their_interfaces() {
        let statistics = Arc::new(Statistics::default());
        for interface in [Interface::OperationsHttp, Interface::OperationsGrpc, Interface::OperationsHttp] {
            // Over gRPC: what is no call at all.
            Unanswered::begin(statistics.clone(), interface).answer(&response(StatusCode::NOT_FOUND, Body::Empty));
        }
        assert_eq!(by_status(&statistics), json!([["operations", "404", 3]]));
    }

    #[test]
    fn calls_are_counted_by_their_last_status() {
        let statistics = Arc::new(Statistics::default());
        let begin = || Unanswered::begin(statistics.clone(), Interface::OpenInferenceGrpc);
        let open = || begin().answer(&response(StatusCode::OK, Body::Empty)).unwrap();
        open().end(Some(0));
        open().end(Some(14));
        open().end(None);
        assert!(begin().answer(&Services::refusal(&crate::mt1::DaemonError::queue_full("m"))).is_none());
        let expected = json!([
            ["open_inference_grpc", "CANCELLED", 1],
            ["open_inference_grpc", "OK", 1],
            ["open_inference_grpc", "RESOURCE_EXHAUSTED", 1],
            ["open_inference_grpc", "UNAVAILABLE", 1]
        ]);
        assert_eq!(by_status(&statistics), expected);
        assert_eq!(statistics.totals().to_record()["errors"], 2);
    }

    #[test]
    fn a_record_of_all_statuses_fits_into_a_line_that_the_daemon_reads() {
        let statistics = Statistics::default();
        for counter in &statistics.by_status[..] {
            counter.store(1 << 53, Relaxed);
        }
        let mut totals = statistics.totals();
        // Those that responses can have.
        let known = [200, 304, 400, 401, 403, 404, 405, 408, 409, 413, 414, 415, 429, 431, 499, 500, 501, 503, 504];
        totals.by_status.retain(|(_, status, _)| *status <= 16 || known.contains(status));
        assert!(totals.to_record().to_string().len() < 32 << 10);
    }
}
