//! Connections from end to end, without a daemon: requests wait for it until their clients go.

use std::future::poll_fn;
use std::os::fd::IntoRawFd;
use std::sync::Arc;
use std::time::Duration;

use ::http::{Request, Uri};
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::StreamExt;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, timeout};

use super::activity::{Crowd, Registry};
use super::connection;
use super::dispatch::Dispatch;
use super::event_loop::{EventLoop, Process};
use super::listener::Descriptor;
use super::newcomers;
use crate::budget::Budget;
use crate::context::Context;
use crate::mt1::Daemon;
use crate::mt1::stand_in::StandIn;
use crate::open_inference::Endpoints;
use crate::operations::Operations;
use crate::settings::Settings;

/// The size of a request's content. The memory of requests has room for two of them.
const CONTENT: usize = 90_000;

/// A server whose requests may use 250,000 bytes.
struct Server {
    dispatch: Arc<Dispatch>,
    settings: Arc<Settings>,
    budget: Arc<Budget>,
    endpoints: Arc<Endpoints>,
    registry: Registry,
    context: Context,
    _drain: watch::Sender<bool>,
}

impl Server {
    fn start() -> Self {
        Self::with_limits(r#"{"max_body_bytes": 92000, "max_buffered_bytes": 250000, "body_timeout_s": 0.2}"#)
    }

    fn with_limits(limits: &str) -> Self {
        let text = r#"{"version": "0", "daemon": "/nonexistent/daemon", "limits": LIMITS, "listeners": [
            {"fd": 3, "address": "127.0.0.1:8000", "http": true}, {"fd": 4, "address": "127.0.0.1:8001", "grpc": true}]}"#;
        let settings: Arc<Settings> = Arc::new(serde_json::from_str(&text.replace("LIMITS", limits)).unwrap());
        let (drain, draining) = watch::channel(false);
        let endpoints = Arc::<Endpoints>::default();
        let budget = Budget::new(settings.limits.max_buffered_bytes(), settings.limits.max_window_bytes());
        let context = Context {
            daemon: Daemon::start(&settings),
            settings: settings.clone(),
            statistics: Arc::default(),
            budget: budget.clone(),
            endpoints: endpoints.clone(),
            operations: Arc::new(Operations::new()),
            draining,
        };
        let dispatch = Arc::new(Dispatch::new(context.clone(), true, true));
        Self { context, dispatch, settings, budget, endpoints, registry: Registry::default(), _drain: drain }
    }

    fn connect(&self) -> DuplexStream {
        self.connect_to(self.dispatch.clone())
    }

    fn connect_to(&self, dispatch: Arc<Dispatch>) -> DuplexStream {
        let (client, server) = duplex(64 << 10);
        let builders = Arc::new(connection::Builders::new(&self.settings.limits));
        let activity = self.registry.add(self.budget.clone(), None, None);
        tokio::spawn(connection::serve(server, builders, dispatch, activity));
        client
    }

    async fn connect_http2(&self) -> h2::client::SendRequest<Bytes> {
        Self::speak_http2(self.connect()).await
    }

    async fn speak_http2(stream: DuplexStream) -> h2::client::SendRequest<Bytes> {
        let (client, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        client
    }

    /// Waits until requests use at least, or less than, this many bytes.
    async fn wait_for_use(&self, bytes: usize, at_least: bool) {
        let reached = async {
            while (self.budget.used() >= bytes) != at_least {
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(Duration::from_secs(30), reached).await.expect("another number of bytes in use");
    }
}

/// Sends an inference request over HTTP/1.1.
async fn send_infer(connection: &mut DuplexStream) {
    let text = "x".repeat(CONTENT);
    let body = format!(r#"{{"inputs": [{{"name": "x", "datatype": "BYTES", "shape": [1], "data": ["{text}"]}}]}}"#);
    let length = body.len();
    let head = format!("POST /v2/models/m/infer HTTP/1.1\r\nHost: m\r\nContent-Length: {length}\r\n\r\n");
    connection.write_all(head.as_bytes()).await.unwrap();
    connection.write_all(body.as_bytes()).await.unwrap();
}

fn call(method: &str) -> Request<()> {
    let path = format!("http://m/inference.GRPCInferenceService/{method}").parse::<Uri>().unwrap();
    Request::post(path).header("content-type", "application/grpc").header("te", "trailers").body(()).unwrap()
}

/// A gRPC message of this content.
fn message(content: &[u8]) -> Bytes {
    let mut message = BytesMut::new();
    message.put_u8(0);
    message.put_u32(content.len() as u32);
    message.put_slice(content);
    message.freeze()
}

/// A ModelInferRequest that is large by its id.
fn large_request() -> Bytes {
    let mut content = crate::grpc::wire::Writer::new();
    content.text(1, "m");
    content.text(3, &"i".repeat(CONTENT));
    message(&content.finish().concat())
}

#[tokio::test]
async fn http_requests_beyond_the_memory_of_all_requests_are_refused() {
    let server = Server::start();
    let (mut first, mut second, mut third) = (server.connect(), server.connect(), server.connect());
    send_infer(&mut first).await;
    send_infer(&mut second).await;
    server.wait_for_use(2 * CONTENT, true).await;
    send_infer(&mut third).await;
    let mut answer = [0; 400];
    let length = third.read(&mut answer).await.unwrap();
    let answer = String::from_utf8_lossy(&answer[..length]).to_lowercase();
    assert!(answer.starts_with("http/1.1 503") && answer.contains("\r\nretry-after: 1\r\n"), "{answer}");
    // A client that goes, and one whose request is refused, give back what they had.
    drop(first);
    server.wait_for_use(2 * CONTENT, false).await;
    send_infer(&mut third).await;
    server.wait_for_use(2 * CONTENT, true).await;
    drop((second, third));
    server.wait_for_use(1, false).await;
}

#[tokio::test]
async fn grpc_calls_beyond_the_memory_of_all_requests_are_refused() {
    let server = Server::start();
    let mut client = server.connect_http2().await;
    let mut waiting = Vec::new();
    for _ in 0..2 {
        let (response, mut body) = client.send_request(call("ModelInfer"), false).unwrap();
        body.send_data(large_request(), true).unwrap();
        waiting.push(response);
    }
    server.wait_for_use(2 * CONTENT, true).await;
    let (response, mut body) = client.send_request(call("ModelInfer"), false).unwrap();
    body.send_data(large_request(), true).unwrap();
    let response = response.await.unwrap();
    assert_eq!(response.headers()["grpc-status"], "8", "RESOURCE_EXHAUSTED");
    assert_eq!(response.headers()["grpc-retry-pushback-ms"], "1000");
    drop((waiting, client, body));
    server.wait_for_use(1, false).await;
}

#[tokio::test]
async fn a_message_of_a_stream_is_counted_until_it_is_answered() {
    let server = Server::start();
    let mut client = server.connect_http2().await;
    let (response, mut body) = client.send_request(call("ModelStreamInfer"), false).unwrap();
    let wrong = message(&[0xff; CONTENT]);
    body.send_data(wrong.clone(), false).unwrap();
    let mut replies = response.await.unwrap().into_body();
    for _ in 0..4 {
        let reply = replies.data().await.unwrap().unwrap();
        assert!(reply.windows(10).any(|window| window == b"not a valid"[..10].as_ref()), "{reply:?}");
        body.send_data(wrong.clone(), false).unwrap();
    }
}

#[tokio::test]
async fn a_message_that_arrives_slowly_ends_its_call() {
    let server = Server::start();
    let mut client = server.connect_http2().await;
    let (response, mut body) = client.send_request(call("ModelInfer"), false).unwrap();
    let slow = async {
        for byte in large_request() {
            if body.send_data(Bytes::copy_from_slice(&[byte]), false).is_err() {
                break;
            }
            sleep(Duration::from_millis(20)).await;
        }
        std::future::pending::<()>().await;
    };
    let response = tokio::select! {
        response = timeout(Duration::from_secs(30), response) => response.expect("the call goes on").unwrap(),
        () = slow => unreachable!(),
    };
    assert_eq!(response.headers()["grpc-status"], "4", "DEADLINE_EXCEEDED");
}

#[tokio::test]
async fn requests_that_fail_are_not_remembered() {
    let server = Server::start();
    let mut connection = server.connect();
    let body = r#"{"inputs": [{"name": "x", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 4}}],
                   "parameters": {"timeout": 1}}"#;
    let (length, all) = (body.len(), body.len() + 4);
    let request = format!(
        "POST /v2/models/made-up/infer HTTP/1.1\r\nHost: m\r\nInference-Header-Content-Length: {length}\r\n\
         Content-Length: {all}\r\n\r\n{body}\0\0\0\0"
    );
    connection.write_all(request.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    connection.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 503");
    assert!(server.endpoints.get("/v2/models/made-up/infer").is_none());
}

#[tokio::test]
async fn many_requests_that_send_no_body_are_bounded_too() {
    let server = Server::start();
    let mut client = server.connect_http2().await;
    let mut waiting = futures_util::stream::FuturesUnordered::new();
    let mut bodies = Vec::new();
    // Each takes 4 KiB, and its head; all of them would take more than there is.
    for _ in 0..100 {
        client = client.ready().await.unwrap();
        let mut call = call("ModelStreamInfer");
        call.headers_mut().insert("x-long", "x".repeat(8000).parse().unwrap());
        let (response, body) = client.send_request(call, false).unwrap();
        waiting.push(response);
        bodies.push(body);
    }
    let mut refused = 0;
    for _ in 0..100 {
        let response = waiting.next().await.unwrap().unwrap();
        refused += usize::from(response.headers().get("grpc-status").is_some_and(|status| status == "8"));
    }
    assert!((70..90).contains(&refused), "{refused} of 100");
    drop((client, bodies));
    server.wait_for_use(1, false).await;
}

#[tokio::test]
async fn a_response_that_its_stream_does_not_take_ends_the_connection() {
    let server = Server::start();
    let (client, connection) =
        h2::client::Builder::new().initial_window_size(0).handshake::<_, Bytes>(server.connect()).await.unwrap();
    let ended = tokio::spawn(connection);
    let (mut client, limits) = (client.ready().await.unwrap(), &server.settings.limits);
    let asking = async {
        // Other streams of the connection go on, so it is never idle. Their responses have no body.
        let request = Request::get("http://m/v2/nosuch").body(()).unwrap();
        let first = client.send_request(request, true).unwrap().0.await.unwrap();
        while let Ok(ready) = client.clone().ready().await {
            client = ready;
            server.registry.sweep(limits, Crowd::default());
            let request = Request::head("http://m/v2/nosuch").body(()).unwrap();
            let Ok((response, _)) = client.send_request(request, true) else { break };
            drop(response.await);
            sleep(Duration::from_millis(10)).await;
        }
        drop(first);
    };
    timeout(Duration::from_secs(30), asking).await.expect("the connection goes on");
    drop(ended.await);
    server.wait_for_use(1, false).await;
}

#[tokio::test]
async fn connections_beyond_the_memory_for_windows_have_a_small_one() {
    const WINDOW: usize = 4 << 20;
    let server = Server::with_limits(r#"{"max_body_bytes": 1000, "max_buffered_bytes": 50000000}"#);
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(server.connect_http2().await);
    }
    server.wait_for_use(2 * WINDOW, true).await;
    assert_eq!(server.budget.used(), 2 * WINDOW, "a quarter of all memory has room for two windows");
    clients.truncate(1);
    server.wait_for_use(2 * WINDOW, false).await;
}

#[tokio::test]
async fn connections_that_are_not_http2_take_no_window_from_those_that_are() {
    let server = Server::with_limits(r#"{"max_body_bytes": 1000, "max_buffered_bytes": 50000000}"#);
    let mut others = Vec::new();
    for sent in ["", "P", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r", "GET /v2 HTTP/1.1\r\n", "POST / HTTP/1.1\r\n"] {
        let mut other = server.connect();
        other.write_all(sent.as_bytes()).await.unwrap();
        others.push(other);
    }
    let mut client = server.connect_http2().await.ready().await.unwrap();
    let (_response, mut body) = client.send_request(call("ModelInfer"), false).unwrap();
    body.reserve_capacity(1 << 20);
    let has_large_window =
        async { while body.capacity() <= 65_535 && poll_fn(|context| body.poll_capacity(context)).await.is_some() {} };
    timeout(Duration::from_secs(30), has_large_window).await.expect("it has a small window");
}

/// Sends this, and returns everything that comes until the connection ends.
async fn exchange(server: &Server, sent: &[u8]) -> String {
    let mut connection = server.connect();
    let mut received = Vec::new();
    // The server may answer before it has read everything.
    let _ = connection.write_all(sent).await;
    timeout(Duration::from_secs(30), connection.read_to_end(&mut received)).await.unwrap().unwrap();
    String::from_utf8(received).unwrap()
}

#[tokio::test]
async fn what_is_no_request_gets_the_body_of_an_error() {
    let server = Server::start();
    let long = format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "x".repeat(70_000));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(200));
    let table = [
        ("garbage\r\n\r\n", "400", "malformed", "not valid HTTP"),
        ("GET / HTTP/1.1\r\nno colon\r\n\r\n", "400", "malformed", "not valid HTTP"),
        (&long, "431", "too_large", "65536 bytes"),
        (&many, "431", "too_large", "100 headers"),
    ];
    for (sent, status, reason, words) in table {
        let answer = exchange(&server, sent.as_bytes()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("multitower-reason: {reason}")), "{head}");
        assert!(head.contains(&format!("content-length: {}", body.len())), "{head}");
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert!(body["error"].as_str().unwrap().contains(words), "{body}");
    }
}

#[tokio::test]
async fn what_follows_a_request_and_is_none_gets_a_body_too() {
    let server = Server::start();
    let mut connection = server.connect();
    let mut received = Vec::new();
    connection.write_all(b"GET /v2/nosuch HTTP/1.1\r\nHost: m\r\n\r\n").await.unwrap();
    while !received.ends_with(b"}") {
        assert_ne!(connection.read_buf(&mut received).await.unwrap(), 0);
    }
    let first = String::from_utf8(std::mem::take(&mut received)).unwrap();
    assert!(first.starts_with("HTTP/1.1 404") && first.contains("multitower-reason: path_unknown"), "{first}");
    connection.write_all(b"garbage\r\n\r\n").await.unwrap();
    connection.read_to_end(&mut received).await.unwrap();
    let second = String::from_utf8(received).unwrap();
    assert!(second.starts_with("HTTP/1.1 400") && second.ends_with("}"), "{second}");
}

#[tokio::test]
async fn a_client_that_was_told_to_continue_may_send_its_whole_body() {
    let server = Server::start();
    let mut connection = server.connect();
    let head =
        "POST /v2/models/m/infer HTTP/1.1\r\nHost: m\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n";
    connection.write_all(head.as_bytes()).await.unwrap();
    let mut told = [0; 25];
    connection.read_exact(&mut told).await.unwrap();
    assert_eq!(&told, b"HTTP/1.1 100 Continue\r\n\r\n");
    // Ten times as long as a body may be. The client reads the answer only after it has sent everything.
    let chunk = format!("{CONTENT:x}\r\n{}\r\n", "x".repeat(CONTENT));
    for _ in 0..10 {
        connection.write_all(chunk.as_bytes()).await.expect("the connection is closed while the client sends");
    }
    connection.write_all(b"0\r\n\r\nGET /v2/nosuch HTTP/1.1\r\nHost: m\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answers = Vec::new();
    timeout(Duration::from_secs(30), connection.read_to_end(&mut answers)).await.unwrap().unwrap();
    let answers = String::from_utf8(answers).unwrap();
    assert!(answers.starts_with("HTTP/1.1 413 ") && answers.contains("HTTP/1.1 404 "), "{answers}");
}

#[tokio::test]
async fn answers_to_head_have_no_body_over_http2_either() {
    let server = Server::start();
    let mut client = server.connect_http2().await.ready().await.unwrap();
    let mut ask = |method: &str| {
        let request = Request::builder().method(method).uri("http://m/v2/nosuch").body(()).unwrap();
        client.send_request(request, true).unwrap().0
    };
    let (whole, head) = (ask("GET").await.unwrap(), ask("HEAD").await.unwrap());
    assert_eq!(
        (head.status(), head.headers().get("content-length")),
        (whole.status(), whole.headers().get("content-length"))
    );
    assert!(head.headers().contains_key("content-length"));
    let (mut whole, mut head) = (whole.into_body(), head.into_body());
    assert!(!whole.data().await.unwrap().unwrap().is_empty());
    let rest = timeout(Duration::from_secs(30), head.data()).await.unwrap();
    assert!(rest.is_none(), "{rest:?}");
}

#[tokio::test]
async fn a_call_whose_messages_do_not_come_ends_at_its_deadline() {
    let server =
        Server::with_limits(r#"{"max_body_bytes": 92000, "max_buffered_bytes": 250000, "body_timeout_s": 3600}"#);
    let mut client = server.connect_http2().await.ready().await.unwrap();
    for (method, sent) in [("ModelInfer", 0), ("ModelInfer", 50), ("ModelStreamInfer", 0), ("ModelStreamInfer", 50)] {
        let mut request = call(method);
        request.headers_mut().insert("grpc-timeout", "20m".parse().unwrap());
        let (response, mut body) = client.send_request(request, false).unwrap();
        body.send_data(large_request().slice(..sent), false).unwrap();
        let ended = async {
            let mut response = response.await.unwrap();
            let trailers = response.body_mut().trailers().await.unwrap();
            trailers.unwrap_or_else(|| response.headers().clone())
        };
        let ended = timeout(Duration::from_secs(30), ended).await.expect("the call goes on");
        assert_eq!(ended["grpc-status"], "4", "DEADLINE_EXCEEDED {method} {sent}");
    }
}

#[tokio::test]
async fn each_address_is_served_however_few_connections_there_may_be() {
    let stand_in = StandIn::start();
    let bound = [(); 2].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    let addresses = bound.each_ref().map(|listener| listener.local_addr().unwrap());
    let listeners = bound.map(|listener| json!({"fd": listener.into_raw_fd(), "address": "", "http": true}));
    let limits = json!({"max_connections": 1});
    let settings = stand_in.settings(json!({"security": false, "listeners": listeners, "limits": limits}));
    let settings = Arc::new(settings);
    let (_drain, draining) = watch::channel(false);
    let process = Process {
        settings: settings.clone(),
        statistics: Arc::default(),
        budget: Budget::new(1 << 30, 0),
        operations: Arc::new(Operations::new()),
        descriptors: settings.listeners.iter().map(|each| Descriptor::from_settings(each).unwrap()).collect(),
        tls: None,
        newcomers: Arc::new(Semaphore::new(newcomers(&settings))),
        draining,
    };
    let asking = async {
        for address in addresses {
            let mut client = TcpStream::connect(address).await.unwrap();
            client.write_all(b"GET /v2/nosuch HTTP/1.1\r\nHost: m\r\nConnection: close\r\n\r\n").await.unwrap();
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.unwrap();
            assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
        }
    };
    tokio::select! {
        () = EventLoop::new(Arc::new(process)).unwrap().serve(|| ()) => unreachable!(),
        asked = timeout(Duration::from_secs(30), asking) => asked.expect("nobody accepts the connection"),
    }
}

/// Reads one response, whose length its head states.
async fn read_response(connection: &mut DuplexStream) -> String {
    let mut received = String::new();
    let is_whole = |received: &str| {
        let (head, body) = received.split_once("\r\n\r\n")?;
        let (_, after) = head.split_once("content-length: ")?;
        Some(body.len() >= after.lines().next()?.parse().ok()?)
    };
    while is_whole(&received) != Some(true) {
        let mut bytes = [0; 1000];
        let read = timeout(Duration::from_secs(30), connection.read(&mut bytes)).await.unwrap().unwrap();
        assert_ne!(read, 0, "the connection is closed");
        received.push_str(std::str::from_utf8(&bytes[..read]).unwrap());
    }
    received
}

const ASK: &[u8] = b"GET /v2/nosuch HTTP/1.1\r\nHost: m\r\n\r\n";

#[tokio::test]
async fn a_connection_that_is_to_end_takes_the_request_that_is_on_its_way() {
    let server = Server::start();
    let (mut used, mut fresh) = (server.connect(), server.connect());
    used.write_all(ASK).await.unwrap();
    let first = read_response(&mut used).await;
    assert!(!first.contains("connection: close"), "{first}");
    server.registry.finish();
    for _ in 0..10 {
        tokio::task::yield_now().await; // the connections look at it
    }
    for connection in [&mut used, &mut fresh] {
        connection.write_all(ASK).await.expect("the connection is closed");
        let last = read_response(connection).await;
        assert!(last.starts_with("HTTP/1.1 404") && last.contains("\r\nconnection: close\r\n"), "{last}");
        let ended = timeout(Duration::from_secs(30), connection.read_to_end(&mut Vec::new())).await;
        ended.expect("the connection goes on").unwrap();
    }
}

#[tokio::test]
async fn connections_without_a_request_end_although_their_clients_do_nothing() {
    let server =
        Server::with_limits(r#"{"max_body_bytes": 1000, "max_buffered_bytes": 50000000, "drain_timeout_s": 0.1}"#);
    let (mut used, mut fresh) = (server.connect(), server.connect());
    used.write_all(ASK).await.unwrap();
    read_response(&mut used).await;
    server.registry.finish();
    for connection in [&mut used, &mut fresh] {
        let ended = timeout(Duration::from_secs(30), connection.read_to_end(&mut Vec::new())).await;
        ended.expect("the connection goes on").unwrap();
    }
}

#[tokio::test]
async fn a_call_over_http1_is_told_what_it_needs_once_all_of_it_has_been_read() {
    let server = Server::start();
    let mut connection = server.connect();
    let head = "POST /inference.GRPCInferenceService/ServerLive HTTP/1.1\r\nHost: m\r\nte: trailers\r\n\
                Content-Type: application/grpc\r\nContent-Length: ";
    let body = large_request();
    connection.write_all(format!("{head}{}\r\n\r\n", body.len()).as_bytes()).await.unwrap();
    connection.write_all(&body).await.unwrap();
    let answer = read_response(&mut connection).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("content-length: 0\r\n"), "{answer}");
    assert!(answer.contains("grpc-status: 12\r\n") && answer.contains("grpc_pass"), "{answer}");
    connection.write_all(ASK).await.unwrap();
    assert!(read_response(&mut connection).await.starts_with("HTTP/1.1 404"), "the connection can be used again");
}

#[tokio::test]
async fn who_asks_at_the_wrong_address_is_told_the_right_one() {
    let server = Server::start();
    let at = |http, grpc| server.connect_to(Arc::new(Dispatch::new(server.context.clone(), http, grpc)));
    let mut client = Server::speak_http2(at(true, false)).await.ready().await.unwrap();
    let (response, mut body) = client.send_request(call("ModelInfer"), false).unwrap();
    body.send_data(large_request(), true).unwrap();
    let headers = response.await.unwrap().headers().clone();
    let message = "this address serves HTTP only; gRPC is served at 127.0.0.1:8001";
    assert_eq!((&headers["grpc-status"], headers["grpc-message"].to_str().unwrap()), (&"12".parse().unwrap(), message));
    let mut connection = at(false, true);
    connection.write_all(ASK).await.unwrap();
    let answer = read_response(&mut connection).await;
    assert!(answer.starts_with("HTTP/1.1 404 ") && answer.contains("multitower-reason: path_unknown"), "{answer}");
    assert!(answer.contains("this address serves gRPC only; HTTP is served at 127.0.0.1:8000"), "{answer}");
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused_in_the_form_of_its_interface() {
    let server = Server::start();
    let mut client = server.connect_http2().await.ready().await.unwrap();
    let long = || "x".repeat(70_000).parse::<::http::HeaderValue>().unwrap();
    let mut request = call("ModelInfer");
    request.headers_mut().insert("x-long", long());
    let response = client.send_request(request, true).unwrap().0.await.unwrap();
    assert_eq!((response.status().as_u16(), &response.headers()["grpc-status"]), (200, &"8".parse().unwrap()));
    let request = Request::get("http://m/v2").header("x-long", long()).body(()).unwrap();
    let response = client.send_request(request, true).unwrap().0.await.unwrap();
    assert_eq!(
        (response.status().as_u16(), &response.headers()["multitower-reason"]),
        (431, &"too_large".parse().unwrap())
    );
}
