//! Which handler gets which request: gRPC by its content type, everything else by its path.

use std::sync::Arc;

use ::http::{HeaderMap, Method, StatusCode, header};

use super::activity::Activity;
use super::open_paths::is_open;
use crate::budget::{Budget, Held, Window};
use crate::context::Context;
use crate::grpc::Services;
use crate::http::{Request, Response, error_response, path_unknown};
use crate::mt1::{Code, DaemonError};
use crate::operations::{self, LoadFormat, LoadReports};
use crate::settings::ListenerSettings;
use crate::statistics::{Interface, Statistics};
use crate::trace::Trace;
use crate::{open_inference, tensorflow_serving};

/// The handlers of one listening address.
#[derive(Clone)]
pub struct Dispatch {
    context: Context,
    http: bool,
    grpc: bool,
}

impl Dispatch {
    pub fn new(context: Context, http: bool, grpc: bool) -> Self {
        Self { context, http, grpc }
    }

    pub fn statistics(&self) -> &Arc<Statistics> {
        &self.context.statistics
    }

    /// Returns what counts the memory of one request.
    pub fn hold(&self) -> Arc<Held> {
        self.context.budget.hold()
    }

    /// Returns what counts the memory of all requests.
    pub fn budget(&self) -> Arc<Budget> {
        self.context.budget.clone()
    }

    /// Reserves memory for the window of a connection, if there is some.
    pub fn reserve_window(&self, bytes: usize) -> Option<Window> {
        self.context.budget.reserve_window(bytes)
    }

    /// Returns the interface that a request uses.
    pub fn interface<B>(&self, request: &::http::Request<B>) -> Interface {
        let path = request.uri().path();
        if self.grpc && is_grpc(request.headers()) {
            return match path {
                _ if path.starts_with("/inference.") => Interface::OpenInferenceGrpc,
                _ if path.starts_with("/tensorflow.serving.") => Interface::TensorflowServingGrpc,
                _ => Interface::OperationsGrpc,
            };
        }
        match path {
            _ if self.http && is_below(path, "/v2") => Interface::OpenInferenceHttp,
            _ if self.http && is_below(path, "/v1") => Interface::TensorflowServingRest,
            // A call at an address of HTTP is told where gRPC is served, in the form that its client can read.
            _ if is_grpc(request.headers()) => Interface::OperationsGrpc,
            _ => Interface::OperationsHttp,
        }
    }

    /// Answers one request, as a part of the trace that its client names. Its interface is that of `interface`.
    pub async fn answer(&self, request: Request, interface: Interface, activity: &Activity) -> Response {
        if head_bytes(&request) > self.context.settings.limits.max_header_bytes {
            return self.refuse_head(interface);
        }
        if self.context.settings.security {
            return Box::pin(self.answer_known(request, interface, activity)).await;
        }
        match Trace::of(request.headers()) {
            None => self.handle(&self.context, request, interface).await,
            // Few requests are traced. Their future is on the heap, so that the others' stays small.
            Some(trace) => Box::pin(trace.scope(self.handle(&self.context, request, interface))).await,
        }
    }

    /// Answers a request of any sender: finds out here who that is. The daemon decides what the sender may do.
    async fn answer_known(&self, mut request: Request, interface: Interface, activity: &Activity) -> Response {
        let context = if is_open(interface, request.method(), request.uri().path()) {
            self.context.clone()
        } else {
            match self.authenticate(&request, interface, activity).await {
                Ok(context) => context,
                Err(error) => {
                    if error.code == Code::Unauthenticated {
                        request.body_mut().keep_little();
                        if activity.client().is_some_and(super::client::Client::is_refused) {
                            activity.finish();
                        }
                    }
                    return refuse(interface, &error);
                }
            }
        };
        match Trace::of(request.headers()) {
            None => self.handle(&context, request, interface).await,
            Some(trace) => trace.scope(self.handle(&context, request, interface)).await,
        }
    }

    /// Returns the context of the principal that sends a request.
    async fn authenticate(
        &self,
        request: &Request,
        interface: Interface,
        activity: &Activity,
    ) -> Result<Context, DaemonError> {
        if interface != Interface::OperationsHttp {
            // It may have to wait.
            request.body().held().add(head_bytes(request))?;
        }
        let client = activity.client().ok_or_else(|| DaemonError::unauthenticated("nobody is known to ask"))?;
        let credential = client.credential(request.headers())?;
        let identity = self.context.daemon.authenticate(credential, client.origin(interface.is_grpc())).await?;
        client.has_shown(&identity);
        Ok(Context { daemon: self.context.daemon.for_identity(identity), ..self.context.clone() })
    }

    /// The answer to a request whose head is too large. hyper answers those of HTTP/1.1.
    fn refuse_head(&self, interface: Interface) -> Response {
        let limit = self.context.settings.limits.max_header_bytes;
        let message = format!("the head of the request has more than {limit} bytes");
        let mut response = refuse(interface, &DaemonError::new(Code::ResourceExhausted, "too_large", message));
        if !interface.is_grpc() {
            *response.status_mut() = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
        }
        response
    }

    /// The error for a request of HTTP at an address of gRPC.
    fn serves_only_grpc(&self) -> DaemonError {
        let place = place("HTTP", "gateway.http", &self.context.settings.listeners, |each| each.http);
        DaemonError { message: format!("Not Found: this address serves gRPC only; {place}"), ..path_unknown() }
    }

    /// The error for a call of gRPC at an address of HTTP.
    fn serves_only_http(&self) -> DaemonError {
        let place = place("gRPC", "gateway.grpc", &self.context.settings.listeners, |each| each.grpc);
        DaemonError::unsupported(format!("this address serves HTTP only; {place}"))
    }

    async fn handle(&self, context: &Context, request: Request, interface: Interface) -> Response {
        if interface == Interface::OperationsHttp && self.http {
            // These need no memory to speak of, and must be answered also while inference has used up all of it.
            return Box::pin(operations::handle(context, request)).await;
        }
        if let Err(error) = request.body().held().add(REQUEST_BYTES + head_bytes(&request)) {
            return refuse(interface, &error);
        }
        let load_format = if request.method() == Method::POST { LoadFormat::wanted(request.headers()) } else { None };
        let mut response = match (interface, self.grpc) {
            (Interface::OpenInferenceHttp, _) => open_inference::http::handle(context.clone(), request).await,
            (Interface::TensorflowServingRest, _) => tensorflow_serving::rest::handle(context.clone(), request).await,
            (Interface::OperationsHttp, _) => error_response(&self.serves_only_grpc(), StatusCode::NOT_FOUND),
            (_, false) => Services::refusal(&self.serves_only_http()),
            (_, true) => Services::call(context.clone(), request).await,
        };
        if let Some(format) = load_format
            && !interface.is_grpc()
        {
            LoadReports::add_to(context, response.headers_mut(), format);
        }
        response
    }
}

/// Returns where something else is served: "gRPC is served at 127.0.0.1:8001", or "no address serves gRPC (gateway.grpc)".
fn place(what: &str, key: &str, listeners: &[ListenerSettings], is_of: fn(&ListenerSettings) -> bool) -> String {
    let addresses: Vec<&str> = listeners.iter().filter(|each| is_of(each)).map(|each| &*each.address).collect();
    if addresses.is_empty() {
        return format!("no address serves {what} ({key})");
    }
    format!("{what} is served at {}", addresses.join(", "))
}

/// Returns the error of a request that was not looked at.
fn refuse(interface: Interface, error: &DaemonError) -> Response {
    match interface {
        Interface::TensorflowServingRest => tensorflow_serving::rest::error_response(error),
        _ if interface.is_grpc() => Services::refusal(error),
        _ => open_inference::http::error_response(error),
    }
}

/// The memory of a request without its head and its body, roughly.
const REQUEST_BYTES: usize = 4 << 10;

/// Returns the bytes of a request's path and headers. A client of HTTP/2 may begin many requests at once.
///
/// They are fewer than those that HTTP/2 and hyper count, so no head that HTTP/1.1 accepts has too many.
fn head_bytes(request: &Request) -> usize {
    let headers = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len());
    request.uri().path().len() + headers.sum::<usize>()
}

fn is_grpc(headers: &HeaderMap) -> bool {
    let content_type = headers.get(header::CONTENT_TYPE);
    content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

/// Whether a path is that of a prefix or below it, without regard to case.
fn is_below(path: &str, prefix: &str) -> bool {
    let (path, prefix) = (path.as_bytes(), prefix.as_bytes());
    path.len() >= prefix.len()
        && path[..prefix.len()].eq_ignore_ascii_case(prefix)
        && matches!(path.get(prefix.len()), None | Some(b'/'))
}

#[cfg(test)]
mod tests {
    use super::is_below;

    #[test]
    fn prefixes_end_at_slashes() {
        for (path, below) in [("/v2", true), ("/v2/", true), ("/V2/models", true), ("/v20", false), ("/", false)] {
            assert_eq!(is_below(path, "/v2"), below, "{path}");
        }
    }
}
