//! What operators ask the gateway for over HTTP: metrics, status, health, and the live page.
//!
//! | path | is |
//! |---|---|
//! | `/` | the page, also while the daemon is away |
//! | `/status.json` | the reply to `MT1:status`; with `?slot=N` one slot with its latest output, with `?events=N` all events that are kept, whatever the number |
//! | `/metrics`, `/monitoring/prometheus/metrics` | the reply to `MT1:metrics` |
//! | `/healthz` | 200 if the gateway and the daemon are alive |
//! | `/readyz` | 200 if the daemon is ready |

mod content;
mod load_report;
mod page;
mod readiness;
mod reports;
mod shared_query;
mod slot_queries;

use std::sync::Arc;
use std::time::Duration;

use ::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::context::Context;
use crate::http::{Request, Response, error_response, json_response, of_response, path_unknown};
use crate::mt1::{Code, Daemon, DaemonError};
use content::Content;
pub use load_report::{LoadFormat, LoadReports};
pub use reports::Reports;
use reports::ReportsByHandle;
use shared_query::SharedQuery;

/// How long the daemon may take for an answer. After that, the gateway answers 503.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// Requests that may wait for the daemon at one time, over all event loops: so many for status and metrics, and so many
/// for health and readiness. Each takes some kilobytes.
const MAX_WAITING: usize = 256;

const ALLOWED: HeaderValue = HeaderValue::from_static("GET, HEAD");

/// What all event loops share: answers that several clients may get, and the places of requests that wait for the daemon.
pub struct Operations {
    /// Orchestrators restart what does not answer: the probes have places of their own.
    probe_places: Semaphore,
    report_places: Semaphore,
    reports: ReportsByHandle,
    live: SharedQuery,
    ready: SharedQuery,
}

impl Operations {
    pub fn new() -> Self {
        Self {
            probe_places: Semaphore::new(MAX_WAITING),
            report_places: Semaphore::new(MAX_WAITING),
            reports: ReportsByHandle::default(),
            live: SharedQuery::new("MT1:server_live", b"{}"),
            ready: SharedQuery::new("MT1:server_ready", b"{}"),
        }
    }

    /// Returns the answers that the daemon gives to the client that it is asked for.
    pub fn reports(&self, daemon: &Daemon) -> Arc<Reports> {
        self.reports.get(daemon.handle())
    }
}

/// Answers a request whose path belongs to no interface for inference.
pub async fn handle(context: &Context, request: Request) -> Response {
    let mut response = answer(context, &request).await.unwrap_or_else(|error| refuse(&error));
    let headers = response.headers_mut();
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (CROSS_ORIGIN_RESOURCE_POLICY, "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

const CROSS_ORIGIN_RESOURCE_POLICY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Page,
    Status,
    Metrics,
    Live,
    Ready,
}

/// All paths that are answered.
const PATHS: [(&str, Asked); 6] = [
    ("/", Asked::Page),
    ("/status.json", Asked::Status),
    ("/metrics", Asked::Metrics),
    ("/monitoring/prometheus/metrics", Asked::Metrics),
    ("/healthz", Asked::Live),
    ("/readyz", Asked::Ready),
];

async fn answer(context: &Context, request: &Request) -> Result<Response, DaemonError> {
    let (path, operations) = (request.uri().path(), &context.operations);
    let reports = || operations.reports(&context.daemon);
    let Some((_, asked)) = PATHS.into_iter().find(|(known, _)| *known == path) else {
        return Err(path_unknown());
    };
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut refused = refuse(&DaemonError::new(Code::Unimplemented, "method_unknown", "Method Not Allowed"));
        refused.headers_mut().insert(header::ALLOW, ALLOWED);
        return Ok(refused);
    }
    let headers = request.headers();
    let _place = take_place(operations, asked)?;
    match asked {
        Asked::Page => Ok(page::answer(headers).await),
        Asked::Status => {
            let content = match wanted_status(request.uri().query())? {
                Wanted::Latest => reports().status.get(&context.daemon).await?,
                Wanted::Events => reports().events.get(&context.daemon).await?,
                Wanted::Slot(number) => reports().slots.get(&context.daemon, number).await?,
            };
            Ok(respond(&content, headers).await)
        }
        Asked::Live => Ok(readiness::live(context).await),
        Asked::Ready => Ok(readiness::ready(context).await),
        Asked::Metrics => {
            let reports = reports();
            let query = if wants_open_metrics(headers) { &reports.open_metrics } else { &reports.metrics };
            let mut response = respond(&*query.get(&context.daemon).await?, headers).await;
            response.headers_mut().append(header::VARY, HeaderValue::from_static("Accept"));
            Ok(response)
        }
    }
}

/// Returns the response to a request that failed. Without a daemon it says when to try again.
fn refuse(error: &DaemonError) -> Response {
    let mut response = error_response(error, StatusCode::SERVICE_UNAVAILABLE);
    if response.status() == StatusCode::SERVICE_UNAVAILABLE {
        // Also if the connection was lost after the request was sent: these requests change nothing, so clients may
        // repeat them.
        response.headers_mut().entry(header::RETRY_AFTER).or_insert(HeaderValue::from_static("1"));
    }
    response
}

/// Returns the response that has this content, compressed if its client accepts gzip.
async fn respond(content: &Content, headers: &HeaderMap) -> Response {
    let compressed = match of_response(headers) {
        Some(crate::compression::Compression::Gzip) => content.gzip().await,
        _ => None,
    };
    let is_compressed = compressed.is_some();
    let mut response = json_response(StatusCode::OK, compressed.unwrap_or_else(|| content.body.clone()));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, content.content_type.clone());
    headers.insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    if is_compressed {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    response
}

/// What a request for the status asks for.
#[derive(Debug, PartialEq)]
enum Wanted {
    Latest,
    /// All events that the daemon keeps.
    Events,
    Slot(u32),
}

/// Returns what a query asks for: `slot=3` for one slot, `events=200` for more events than usual.
fn wanted_status(query: Option<&str>) -> Result<Wanted, DaemonError> {
    for pair in query.unwrap_or_default().split('&') {
        let Some((name @ ("slot" | "events"), value)) = pair.split_once('=') else { continue };
        let number: u32 =
            value.parse().map_err(|_| DaemonError::invalid(format!("{name} in the query is not a whole number")))?;
        return Ok(if name == "slot" { Wanted::Slot(number) } else { Wanted::Events });
    }
    Ok(Wanted::Latest)
}

/// Whether a client accepts OpenMetrics.
fn wants_open_metrics(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|item| {
        let mut parts = item.split(';').map(str::trim);
        let is_open_metrics =
            parts.next().is_some_and(|name| name.eq_ignore_ascii_case("application/openmetrics-text"));
        let quality = parts.find_map(|part| part.strip_prefix("q=")?.parse::<f32>().ok());
        is_open_metrics && quality.is_none_or(|quality| quality > 0.0)
    })
}

/// Takes a place for a request that waits for the daemon, until the permit is dropped. The page does not wait.
fn take_place(operations: &Operations, asked: Asked) -> Result<Option<SemaphorePermit<'_>>, DaemonError> {
    let (places, what) = match asked {
        Asked::Page => return Ok(None),
        Asked::Live | Asked::Ready => (&operations.probe_places, "health or readiness"),
        Asked::Status | Asked::Metrics => (&operations.report_places, "status or metrics"),
    };
    let place = places.try_acquire();
    place.map(Some).map_err(|_| DaemonError::queue_full(format!("{MAX_WAITING} requests for {what} are waiting")))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::documented_paths;

    #[test]
    fn every_path_is_documented_with_what_the_daemon_decides() {
        let paths: BTreeSet<_> = PATHS.iter().map(|(path, _)| format!("GET {path}")).collect();
        assert_eq!(paths, documented_paths::where_first(|first| !matches!(first, "v1" | "v2")));
    }

    #[test]
    fn clients_choose_the_format_of_metrics() {
        for (accept, expected) in [
            ("", false),
            ("text/plain;version=0.0.4", false),
            ("application/openmetrics-text;version=1.0.0;q=0.6, text/plain;q=0.4", true),
            ("text/plain, Application/OpenMetrics-Text", true),
            ("application/openmetrics-text;q=0, */*", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
            assert_eq!(wants_open_metrics(&headers), expected, "{accept}");
        }
    }

    #[test]
    fn a_query_may_ask_for_a_slot_or_for_events() {
        for (query, expected) in [
            (None, Some(Wanted::Latest)),
            (Some("x=1"), Some(Wanted::Latest)),
            (Some("x=1&slot=3"), Some(Wanted::Slot(3))),
            (Some("events=200"), Some(Wanted::Events)),
            (Some("events=1"), Some(Wanted::Events)),
            (Some("slot=-1"), None),
            (Some("slot="), None),
        ] {
            assert_eq!(wanted_status(query).ok(), expected, "{query:?}");
        }
    }

    #[test]
    fn requests_that_wait_are_bounded_and_leave_probes_their_places() {
        let operations = Operations::new();
        let mut waiting: Vec<_> = (0..MAX_WAITING).map(|_| take_place(&operations, Asked::Status).unwrap()).collect();
        assert!(take_place(&operations, Asked::Metrics).is_err());
        let _probes = [Asked::Live, Asked::Ready, Asked::Page].map(|asked| take_place(&operations, asked).unwrap());
        waiting.pop();
        assert!(take_place(&operations, Asked::Metrics).is_ok());
    }
}
