//! One connection of a client: HTTP/1.1 or HTTP/2, found out by its first bytes, which TLS may have decrypted.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use ::http::{HeaderValue, Method, Version, header};
use hyper::body::{Body as _, Incoming};
use hyper::service::Service;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};

use super::activity::{Activity, LastRequest, Verdict};
use super::dispatch::Dispatch;
use super::own_wakes::OwnWakes;
use super::refusal::WithRefusals;
use super::watched::{OpenRequest, Watched, WatchedBody};
use crate::http::{Body, RequestBody, Response};
use crate::peeked::Peeked;
use crate::settings::Limits;
use crate::statistics::Unanswered;

/// What an HTTP/2 client may send before a request is read, in each stream and altogether. With less, a large tensor waits
/// for the client's next packet again and again.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;

/// The same where the memory for windows is used up: HTTP/2's initial value, with which every client may begin.
const SMALL_WINDOW: u32 = 65_535;

const FRAME_BYTES: u32 = 64 << 10;
const MAX_STREAMS: u32 = 256;

/// hyper's smallest read buffer.
const MIN_BUFFER_BYTES: usize = 8 << 10;

/// How often a connection is polled in a row while it wakes itself. Each time it reads up to 64 KiB of a body.
const POLLS: usize = 16;

/// How connections are served: those of HTTP/1.1, and those of HTTP/2 with a large or a small window.
pub struct Builders {
    http1: auto::Builder<TokioExecutor>,
    large: auto::Builder<TokioExecutor>,
    small: auto::Builder<TokioExecutor>,
    max_header_bytes: usize,
    last_request_time: Duration,
}

impl Builders {
    pub fn new(limits: &Limits) -> Self {
        Self {
            http1: builder(limits, SMALL_WINDOW, SMALL_WINDOW).http1_only(),
            large: builder(limits, STREAM_WINDOW, CONNECTION_WINDOW).http2_only(),
            small: builder(limits, SMALL_WINDOW, SMALL_WINDOW).http2_only(),
            max_header_bytes: limits.max_header_bytes,
            last_request_time: limits.last_request_time(),
        }
    }
}

fn builder(limits: &Limits, stream_window: u32, connection_window: u32) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(None) // `Activity` does that without a timer for each request
        .max_buf_size(limits.max_header_bytes.max(MIN_BUFFER_BYTES))
        .half_close(false);
    // hyper refuses larger heads with a status alone, which clients of gRPC do not understand. `Dispatch` refuses those of
    // up to twice the limit.
    builder
        .http2()
        .timer(TokioTimer::new())
        .initial_stream_window_size(stream_window)
        .initial_connection_window_size(connection_window)
        .max_frame_size(FRAME_BYTES)
        .max_header_list_size(u32::try_from(limits.max_header_bytes.saturating_mul(2)).unwrap_or(u32::MAX))
        .max_concurrent_streams(MAX_STREAMS);
    builder
}

/// Serves a connection until it ends, or its time is over.
pub async fn serve<S>(stream: S, builders: Arc<Builders>, dispatch: Arc<Dispatch>, activity: Arc<Activity>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let stream = WithRefusals::new(stream, builders.max_header_bytes, activity.clone());
    let mut stream = Peeked::new(Watched::new(stream, activity.clone(), dispatch.statistics().clone()));
    let mut last_request = LastRequest::new(builders.last_request_time);
    let is_http2 = poll_fn(|context| match activity.poll_ending(context, &mut last_request) {
        Poll::Pending => stream.poll_is_http2(context).map(Result::ok),
        Poll::Ready(()) => Poll::Ready(None),
    });
    let Some(is_http2) = is_http2.await else { return };
    // Only HTTP/2 has windows. The memory of this one is reserved until the connection ends.
    let window = if is_http2 { dispatch.reserve_window(CONNECTION_WINDOW as usize) } else { None };
    let builder = match (is_http2, &window) {
        (false, _) => &builders.http1,
        (true, Some(_)) => &builders.large,
        (true, None) => &builders.small,
    };
    let service = Requests { dispatch, activity: activity.clone() };
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let mut finishing = false;
    let own_wakes = OwnWakes::new();
    poll_fn(|context| {
        match activity.verdict(context.waker()) {
            Verdict::Close => return Poll::Ready(()),
            // A client of HTTP/2 is told which of its requests were not taken. One of HTTP/1.1 is not: it may have sent a
            // request when its connection is closed, and the response to that one is where it can be told.
            Verdict::Finish
                if !finishing && (is_http2 || activity.has_request() || last_request.poll_over(context).is_ready()) =>
            {
                finishing = true;
                connection.as_mut().graceful_shutdown();
            }
            Verdict::Finish | Verdict::Continue => {}
        }
        // Errors are the client's: it went away, or does not speak HTTP. hyper has answered what can be answered.
        own_wakes.poll(context, POLLS, |context| connection.as_mut().poll(context).map(drop))
    })
    .await;
}

/// The requests of one connection.
struct Requests {
    dispatch: Arc<Dispatch>,
    activity: Arc<Activity>,
}

impl Service<::http::Request<Incoming>> for Requests {
    type Response = ::http::Response<WatchedBody>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, request: ::http::Request<Incoming>) -> Self::Future {
        let http2 = request.version() == Version::HTTP_2;
        // hyper leaves out the body of answers to HEAD over HTTP/1.1 only.
        let is_http2_head = http2 && request.method() == Method::HEAD;
        let open = OpenRequest::begin(self.activity.clone(), http2);
        let interface = self.dispatch.interface(&request);
        let unanswered = Unanswered::begin(self.dispatch.statistics().clone(), interface);
        let (dispatch, activity) = (self.dispatch.clone(), self.activity.clone());
        Box::pin(async move {
            // Until the request is answered, its bytes are in memory. Then those of the answer are.
            let held = dispatch.hold();
            let response = dispatch.answer(RequestBody::wrap(request, held.clone()), interface, &activity).await;
            let uncounted = unanswered.answer(&response);
            let mut response = if is_http2_head { without_body(response) } else { response };
            if !http2 && activity.is_ending() {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok(response.map(|body| WatchedBody::new(body.counted(&held), open, uncounted)))
        })
    }
}

/// Leaves the body out. The headers stay as they would be with it, its length included.
fn without_body(mut response: Response) -> Response {
    if let Some(bytes) = response.body().size_hint().exact() {
        response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(bytes));
    }
    response.map(|_| Body::Empty)
}
