//! Load reports for load balancers (ORCA): the header `endpoint-load-metrics` of responses to inference over HTTP.
//!
//! Only clients that send `endpoint-load-metrics-format` get one. What the daemon knows is usually about a second
//! old, never more than five: it is asked in the background, and only while there are such clients.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ::http::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;
use serde_json::json;

use crate::context::Context;
use crate::statistics::Totals;

const FORMAT: HeaderName = HeaderName::from_static("endpoint-load-metrics-format");
const REPORT: HeaderName = HeaderName::from_static("endpoint-load-metrics");

/// From which age on the daemon is asked again.
const REFRESH: Duration = Duration::from_secs(1);

/// Older figures are not reported.
const MAX_AGE: Duration = Duration::from_secs(5);

/// The form of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadFormat {
    Json,
    Text,
}

impl LoadFormat {
    /// Returns the form that a client asks for; None if it asks for none, or for one that does not exist here.
    pub fn wanted(headers: &HeaderMap) -> Option<Self> {
        match headers.get(FORMAT)?.as_bytes().trim_ascii() {
            name if name.eq_ignore_ascii_case(b"json") => Some(Self::Json),
            name if name.eq_ignore_ascii_case(b"text") => Some(Self::Text),
            _ => None,
        }
    }
}

/// The parts of the status that make up the load.
#[derive(Deserialize)]
struct Status {
    slots: Vec<SlotLoad>,
    models: Vec<ModelLoad>,
}

#[derive(Deserialize)]
struct SlotLoad {
    state: String,
    depth: u64,
}

#[derive(Deserialize)]
struct ModelLoad {
    name: String,
    queue: u64,
}

/// The load at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
struct Load {
    /// The share of the ready slots that have work.
    utilization: f64,
    /// Requests that no worker has yet.
    queued: u64,
    rates: Option<Rates>,
}

/// Requests and errors of the gateway a second.
type Rates = (f64, f64);

#[derive(Default)]
struct Known {
    load: Option<(Instant, Load)>,
    /// When the gateway's own totals were read, and what they were.
    totals: Option<(Instant, Totals)>,
    /// None at first and after a pause.
    rates: Option<Rates>,
}

impl Known {
    /// Takes the totals of this time. Rates are those between totals that are neither too close together to tell a
    /// rate nor so far apart that it is that of long ago.
    fn note_totals(&mut self, now: Instant, totals: Totals) {
        if let Some((at, earlier)) = &self.totals {
            let age = now.duration_since(*at);
            if age < REFRESH {
                return;
            }
            self.rates = (age < MAX_AGE).then(|| totals.rates_since(earlier, age));
        }
        self.totals = Some((now, totals));
    }
}

/// The state from which reports are made.
#[derive(Default)]
pub struct LoadReports {
    known: Mutex<Known>,
    refreshing: AtomicBool,
}

impl LoadReports {
    /// Adds a report to the headers of a response.
    pub fn add_to(context: &Context, headers: &mut HeaderMap, format: LoadFormat) {
        let shared = context.operations.reports(&context.daemon);
        let reports = &shared.load_reports;
        let load = {
            let known = reports.known();
            if known.load.as_ref().is_none_or(|(at, _)| at.elapsed() >= REFRESH)
                && !reports.refreshing.swap(true, Relaxed)
            {
                tokio::spawn(refresh(context.clone()));
            }
            known.load.as_ref().filter(|(at, _)| at.elapsed() < MAX_AGE).map(|(_, load)| load.clone())
        };
        if load.is_none() && context.settings.security {
            return; // whether its client may know the load is not known, or it may not
        }
        if let Ok(report) = HeaderValue::from_str(&written(load.as_ref(), context.statistics.outstanding(), format)) {
            headers.insert(REPORT, report);
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks the daemon, and takes the answer for further reports.
async fn refresh(context: Context) {
    let shared = context.operations.reports(&context.daemon);
    let answer = shared.status.get(&context.daemon).await;
    let status = answer.ok().and_then(|content| serde_json::from_slice::<Status>(&content.body).ok());
    let (now, totals) = (Instant::now(), context.statistics.totals());
    let reports = &shared.load_reports;
    {
        let mut known = reports.known();
        known.note_totals(now, totals);
        if let Some(status) = status {
            known.load = Some((now, load_of(status, known.rates)));
        }
    }
    reports.refreshing.store(false, Relaxed);
}

fn load_of(status: Status, rates: Option<Rates>) -> Load {
    let ready = || status.slots.iter().filter(|slot| slot.state == "ready");
    let busy = ready().filter(|slot| slot.depth > 0).count();
    let mut queued = 0;
    let mut model = None;
    for row in &status.models {
        // Each version of a model has the queue of all of them.
        if model.replace(&row.name) != Some(&row.name) {
            queued += row.queue;
        }
    }
    Load { utilization: busy as f64 / ready().count().max(1) as f64, queued, rates }
}

fn written(load: Option<&Load>, outstanding: u64, format: LoadFormat) -> String {
    let rounded = |value: f64| (value * 1000.0).round() / 1000.0;
    match (format, load) {
        (LoadFormat::Json, None) => {
            format!("JSON {}", json!({"named_metrics": {"outstanding_requests": outstanding}}))
        }
        (LoadFormat::Json, Some(load)) => {
            let mut report = json!({
                "application_utilization": rounded(load.utilization),
                "named_metrics": {"queue_requests": load.queued, "outstanding_requests": outstanding},
            });
            if let Some((requests, errors)) = load.rates {
                report["rps_fractional"] = json!(rounded(requests));
                report["eps"] = json!(rounded(errors));
            }
            format!("JSON {report}")
        }
        (LoadFormat::Text, None) => format!("TEXT named_metrics.outstanding_requests={outstanding}"),
        (LoadFormat::Text, Some(load)) => {
            let rates = load.rates.map_or(String::new(), |(requests, errors)| {
                format!(", rps_fractional={}, eps={}", rounded(requests), rounded(errors))
            });
            format!(
                "TEXT application_utilization={}{rates}, named_metrics.queue_requests={}, \
                 named_metrics.outstanding_requests={outstanding}",
                rounded(load.utilization),
                load.queued,
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statistics::{Interface, Statistics, Unanswered};

    #[test]
    fn clients_choose_the_form_of_reports() {
        for (value, expected) in
            [("json", Some(LoadFormat::Json)), ("TEXT", Some(LoadFormat::Text)), ("bin", None), ("", None)]
        {
            let mut headers = HeaderMap::new();
            headers.insert(FORMAT, HeaderValue::from_static(value));
            assert_eq!(LoadFormat::wanted(&headers), expected, "{value}");
        }
        assert_eq!(LoadFormat::wanted(&HeaderMap::new()), None);
    }

    #[test]
    fn the_load_is_that_of_ready_slots_and_of_each_model_once() {
        let status = r#"{"daemon": {}, "slots": [{"state": "ready", "depth": 3}, {"state": "ready", "depth": 0},
                          {"state": "backoff", "depth": 0}],
                         "models": [{"name": "a", "queue": 5}, {"name": "a", "queue": 5}, {"name": "b", "queue": 2}]}"#;
        let load = load_of(serde_json::from_str(status).unwrap(), Some((12.5, 0.25)));
        assert_eq!(load, Load { utilization: 0.5, queued: 7, rates: Some((12.5, 0.25)) });
        assert_eq!(
            written(Some(&load), 4, LoadFormat::Text),
            "TEXT application_utilization=0.5, rps_fractional=12.5, eps=0.25, named_metrics.queue_requests=7, \
             named_metrics.outstanding_requests=4"
        );
        let report = written(Some(&load), 4, LoadFormat::Json);
        let report: serde_json::Value = serde_json::from_str(report.strip_prefix("JSON ").unwrap()).unwrap();
        assert_eq!(report["named_metrics"], json!({"queue_requests": 7, "outstanding_requests": 4}));
        assert_eq!(written(None, 4, LoadFormat::Text), "TEXT named_metrics.outstanding_requests=4");
        assert_eq!(
            written(Some(&Load { rates: None, ..load }), 4, LoadFormat::Text),
            "TEXT application_utilization=0.5, named_metrics.queue_requests=7, named_metrics.outstanding_requests=4"
        );
    }

    #[test]
    fn rates_are_those_of_the_last_seconds() {
        let (mut known, began) = (Known::default(), Instant::now());
        let statistics = std::sync::Arc::new(Statistics::default());
        let mut at = |seconds: f64, requests: usize| {
            for _ in 0..requests {
                drop(Unanswered::begin(statistics.clone(), Interface::OpenInferenceHttp));
            }
            known.note_totals(began + Duration::from_secs_f64(seconds), statistics.totals());
            known.rates
        };
        assert_eq!(at(0.0, 5), None);
        assert_eq!(at(2.0, 10), Some((5.0, 0.0)));
        // Without an answer of the daemon the totals are read again at each request.
        assert_eq!(at(2.01, 10), Some((5.0, 0.0)));
        assert_eq!(at(4.0, 0), Some((5.0, 0.0)));
        assert_eq!(at(3600.0, 7), None, "nobody asked for an hour");
        assert_eq!(at(3601.0, 7), Some((7.0, 0.0)));
    }
}
