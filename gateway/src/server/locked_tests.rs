//! Requests of a gateway whose daemon has `security`: a stand-in knows three tokens.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ::http::{Request, Uri};
use bytes::Bytes;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::activity::{Crowd, Registry};
use super::client::Client;
use super::connection;
use super::dispatch::Dispatch;
use crate::budget::Budget;
use crate::context::Context;
use crate::mt1::Daemon;
use crate::mt1::stand_in::StandIn;
use crate::operations::Operations;
use crate::settings::Settings;
use crate::tls::ClientCertificate;

const LIMIT: Duration = Duration::from_secs(30);

/// May do everything; may nothing; is revoked by a test.
const TOKENS: [(&str, &str); 3] =
    [("all.s", "aaaaaaaaaaaaaaaa"), ("none.s", "bbbbbbbbbbbbbbbb"), ("revoked.s", "cccccccccccccccc")];

/// What the daemon is asked for somebody.
const KINDS: [&str; 10] = [
    "MT1:infer",
    "MT1:load",
    "MT1:metrics",
    "MT1:model_config",
    "MT1:model_metadata",
    "MT1:model_ready",
    "MT1:server_metadata",
    "MT1:statistics",
    "MT1:status",
    "MT1:unload",
];

struct Locked {
    stand_in: StandIn,
    settings: Arc<Settings>,
    dispatch: Arc<Dispatch>,
    registry: Arc<Registry>,
    _drain: watch::Sender<bool>,
}

impl Locked {
    async fn start() -> Self {
        let stand_in = StandIn::start();
        for (token, handle) in TOKENS {
            stand_in.accept(token, handle);
        }
        for kind in KINDS {
            stand_in.forbid("bbbbbbbbbbbbbbbb", kind);
        }
        let settings = Arc::new(stand_in.settings(json!({"operate": true})));
        let (drain, draining) = watch::channel(false);
        let daemon = Daemon::start(&settings);
        daemon.connected().await;
        let context = Context {
            daemon,
            settings: settings.clone(),
            statistics: Arc::default(),
            budget: Budget::new(1 << 30, 0),
            endpoints: Arc::default(),
            operations: Arc::new(Operations::new()),
            draining,
        };
        let dispatch = Arc::new(Dispatch::new(context, true, true));
        let registry = Arc::<Registry>::default();
        let (swept, limits) = (registry.clone(), settings.clone());
        tokio::spawn(async move {
            loop {
                sleep(Duration::from_millis(20)).await;
                swept.sweep(&limits.limits, Crowd::default());
            }
        });
        Self { stand_in, settings, dispatch, registry, _drain: drain }
    }

    fn connect(&self) -> DuplexStream {
        self.connect_with(None)
    }

    /// Connects as if TLS had verified a certificate with this name.
    fn connect_with(&self, certificate_name: Option<&str>) -> DuplexStream {
        let (near, far) = duplex(64 << 10);
        let builders = Arc::new(connection::Builders::new(&self.settings.limits));
        let client = Client::new("1.2.3.4:5".to_owned(), true);
        if let Some(name) = certificate_name {
            client.set_certificate(Arc::new(ClientCertificate::named(name)));
        }
        let activity = self.registry.add(self.dispatch.budget(), None, Some(client));
        tokio::spawn(connection::serve(far, builders, self.dispatch.clone(), activity));
        near
    }

    async fn connect_http2(&self) -> h2::client::SendRequest<Bytes> {
        let (client, connection) = h2::client::handshake(self.connect()).await.unwrap();
        tokio::spawn(connection);
        client
    }
}

/// Sends a request over a connection, and returns the response's head in lower case and its body.
async fn ask(connection: &mut DuplexStream, method: &str, path: &str, token: Option<&str>) -> (String, String) {
    let authorization = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
    let body = if method == "POST" { r#"{"inputs": [], "examples": [{}], "instances": [1]}"# } else { "" };
    let length = body.len();
    let head = format!("{method} {path} HTTP/1.1\r\nHost: m\r\n{authorization}Content-Length: {length}\r\n\r\n{body}");
    connection.write_all(head.as_bytes()).await.unwrap();
    let mut received = Vec::new();
    let (head, mut body) = loop {
        assert_ne!(timeout(LIMIT, connection.read_buf(&mut received)).await.unwrap().unwrap(), 0, "{method} {path}");
        if let Some(end) = received.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8(received[..end].to_vec()).unwrap().to_lowercase();
            break (head, received[end + 4..].to_vec());
        }
    };
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap_or("0").parse().unwrap();
    while method != "HEAD" && body.len() < length {
        connection.read_buf(&mut body).await.unwrap();
    }
    (head, String::from_utf8(body).unwrap())
}

fn status(head: &str) -> u16 {
    head.split(' ').nth(1).unwrap().parse().unwrap()
}

/// Each path of HTTP that asks the daemon for somebody.
const PATHS: [(&str, &str); 17] = [
    ("GET", "/v2"),
    ("GET", "/v2/models/m"),
    ("GET", "/v2/models/m/ready"),
    ("GET", "/v2/models/m/config"),
    ("GET", "/v2/models/m/stats"),
    ("GET", "/v2/models/stats"),
    ("POST", "/v2/models/m/infer"),
    ("POST", "/v2/models/m/versions/1/infer"),
    ("POST", "/v2/repository/index"),
    ("POST", "/v2/repository/models/m/load"),
    ("POST", "/v2/repository/models/m/unload"),
    ("GET", "/v1/models/m"),
    ("GET", "/v1/models/m/metadata"),
    ("POST", "/v1/models/m:predict"),
    ("GET", "/status.json"),
    ("GET", "/metrics"),
    ("GET", "/monitoring/prometheus/metrics"),
];

#[tokio::test]
async fn each_path_needs_a_credential_and_the_daemon_s_permission() {
    let locked = Locked::start().await;
    let mut connection = locked.connect();
    // Those who may do everything come first: what they were answered is remembered.
    for (token, expected, reason) in [
        (Some("all.s"), None, ""),
        (None, Some(401), "unauthenticated"),
        (Some("wrong.s"), Some(401), "unauthenticated"),
        (Some("none.s"), Some(403), "forbidden"),
    ] {
        for (method, path) in PATHS {
            let (head, body) = ask(&mut connection, method, path, token).await;
            match expected {
                None => assert!(![401, 403].contains(&status(&head)), "{method} {path} {head} {body}"),
                Some(expected) => {
                    assert_eq!(status(&head), expected, "{method} {path} {token:?} {head} {body}");
                    assert!(head.contains(&format!("multitower-reason: {reason}")), "{head}");
                    assert_eq!(head.contains("www-authenticate: bearer"), expected == 401, "{head}");
                    assert!(body.starts_with(r#"{"error":""#) && !body.contains(".s"), "{body}");
                }
            }
        }
    }
    for path in ["/nosuch", "/v2/nosuch", "/v1/nosuch", "/v2/systemsharedmemory/status", "/v2/logging"] {
        assert_eq!(status(&ask(&mut connection, "GET", path, None).await.0), 401, "{path}");
    }
    let unnamed = KINDS.iter().flat_map(|kind| locked.stand_in.received(kind));
    assert!(unnamed.into_iter().all(|message| message.handle != "anonymous" && !message.handle.is_empty()));
}

#[tokio::test]
async fn liveness_readiness_and_the_empty_page_are_open() {
    let locked = Locked::start().await;
    let mut connection = locked.connect();
    for (path, expected) in [
        ("/healthz", r#"{"live":true}"#),
        ("/readyz", r#"{"ready":true}"#),
        ("/v2/health/live", r#"{"live":true}"#),
        ("/v2/health/ready", r#"{"ready":true}"#),
    ] {
        for token in [None, Some("wrong.s"), Some("none.s")] {
            let (head, body) = ask(&mut connection, "GET", path, token).await;
            assert_eq!((status(&head), body.as_str()), (200, expected), "{path}");
        }
    }
    let (head, page) = ask(&mut connection, "GET", "/", None).await;
    assert!(status(&head) == 200 && page.contains("sessionStorage"));
    assert!(locked.stand_in.received("MT1:authenticate").is_empty(), "credentials are not looked at");
    for kind in ["MT1:server_live", "MT1:server_ready"] {
        assert!(locked.stand_in.received(kind).iter().all(|message| message.handle == "anonymous"));
    }
}

#[tokio::test]
async fn what_one_principal_was_answered_is_shown_to_no_other() {
    let locked = Locked::start().await;
    let mut connection = locked.connect();
    for (token, handle) in [TOKENS[0], TOKENS[2], TOKENS[0]] {
        let (_, status) = ask(&mut connection, "GET", "/status.json", Some(token)).await;
        assert!(status.contains(handle), "{status}");
        let (_, metrics) = ask(&mut connection, "GET", "/metrics", Some(token)).await;
        assert_eq!(metrics, format!("of {handle}\n"));
    }
}

#[tokio::test]
async fn a_certificate_names_its_client_unless_a_token_does() {
    let locked = Locked::start().await;
    locked.stand_in.accept("checkout", "dddddddddddddddd");
    let mut connection = locked.connect_with(Some("checkout"));
    let (_, body) = ask(&mut connection, "GET", "/v2/models/m", None).await;
    assert!(body.contains("dddddddddddddddd"), "{body}");
    let (_, body) = ask(&mut connection, "GET", "/v2/models/m", Some("all.s")).await;
    assert!(body.contains("aaaaaaaaaaaaaaaa"), "{body}");
    assert_eq!(status(&ask(&mut connection, "GET", "/v2/models/m", Some("wrong.s")).await.0), 401);
    let mut other = locked.connect_with(Some("unknown"));
    assert_eq!(status(&ask(&mut other, "GET", "/v2/models/m", None).await.0), 401);
}

fn call(method: &str, token: Option<&str>) -> Request<()> {
    let path = format!("http://m/{method}").parse::<Uri>().unwrap();
    let mut call = Request::post(path).header("content-type", "application/grpc").header("te", "trailers");
    if let Some(token) = token {
        call = call.header("authorization", format!("Bearer {token}"));
    }
    call.body(()).unwrap()
}

/// Calls a method with an empty message, or one with a model. Returns the status, and what else the trailers have.
async fn grpc(client: &mut h2::client::SendRequest<Bytes>, method: &str, token: Option<&str>) -> (String, String) {
    let mut message = crate::grpc::wire::Writer::new();
    match method {
        _ if method.ends_with("ServerReflectionInfo") => message.text(7, ""),
        "tensorflow.serving.PredictionService/Predict" | "tensorflow.serving.ModelService/GetModelStatus" => {
            message.bytes_field(1, b"\x0a\x01m");
        }
        "tensorflow.serving.PredictionService/GetModelMetadata" => {
            message.bytes_field(1, b"\x0a\x01m");
            message.text(2, "signature_def");
        }
        "inference.GRPCInferenceService/RepositoryModelLoad"
        | "inference.GRPCInferenceService/RepositoryModelUnload" => {
            message.text(2, "m");
        }
        _ if method.starts_with("inference.GRPCInferenceService/Model") => message.text(1, "m"),
        _ => {}
    }
    let content = message.finish().concat();
    let framed = [&[0][..], &(content.len() as u32).to_be_bytes(), &content].concat();
    let mut ready = client.clone().ready().await.unwrap();
    let (response, mut body) = ready.send_request(call(method, token), false).unwrap();
    body.send_data(framed.into(), true).unwrap();
    let response = timeout(LIMIT, response).await.unwrap().unwrap();
    let (head, mut replies) = response.into_parts();
    let mut all = head.headers;
    let mut data = String::new();
    if !all.contains_key("grpc-status") {
        while let Some(Ok(piece)) = replies.data().await {
            replies.flow_control().release_capacity(piece.len()).unwrap();
            data.push_str(&String::from_utf8_lossy(&piece));
            if method.ends_with("/Watch") {
                return ("0".to_owned(), data); // it has no end
            }
        }
        all.extend(replies.trailers().await.unwrap().unwrap_or_default());
    }
    let status = all["grpc-status"].to_str().unwrap().to_owned();
    (status, format!("{all:?} {data}"))
}

#[tokio::test]
async fn each_call_of_grpc_needs_a_credential_and_the_daemon_s_permission() {
    let locked = Locked::start().await;
    let mut client = locked.connect_http2().await;
    let inference = |method: &str| format!("inference.GRPCInferenceService/{method}");
    let mut methods: Vec<String> = [
        "ModelReady",
        "ServerMetadata",
        "ModelMetadata",
        "ModelInfer",
        "ModelConfig",
        "ModelStatistics",
        "RepositoryIndex",
        "RepositoryModelLoad",
        "RepositoryModelUnload",
    ]
    .map(inference)
    .into();
    let serving = ["PredictionService/Predict", "PredictionService/GetModelMetadata", "ModelService/GetModelStatus"];
    methods.extend(serving.map(|method| format!("tensorflow.serving.{method}")));
    for (token, expected) in
        [(Some("all.s"), None), (None, Some("16")), (Some("wrong.s"), Some("16")), (Some("none.s"), Some("7"))]
    {
        for method in &methods {
            let (status, all) = grpc(&mut client, method, token).await;
            match expected {
                None => assert!(!["7", "16"].contains(&&status[..]), "{method} {all}"),
                Some(expected) => {
                    assert_eq!(status, expected, "{method} {token:?} {all}");
                    let reason = if expected == "7" { "forbidden" } else { "unauthenticated" };
                    assert!(all.contains(&format!("\"multitower-reason\": \"{reason}\"")), "{all}");
                    assert!(!all.contains("wrong"), "{all}");
                }
            }
        }
    }
    for method in ["grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "no.Such/Method"] {
        assert_eq!(grpc(&mut client, method, None).await.0, "16", "{method}");
    }
    for method in [
        "inference.GRPCInferenceService/ServerLive",
        "inference.GRPCInferenceService/ServerReady",
        { "grpc.health.v1.Health/Check" },
        "grpc.health.v1.Health/Watch",
    ] {
        assert_eq!(grpc(&mut client, method, None).await.0, "0", "{method}");
        assert_eq!(grpc(&mut client, method, Some("wrong.s")).await.0, "0", "{method}");
    }
    // Each message of a stream is one of its principal's requests.
    let (status, all) = grpc(&mut client, &inference("ModelStreamInfer"), Some("none.s")).await;
    assert!(status == "0" && all.contains("forbidden by the stand-in"), "{all}");
    assert_eq!(grpc(&mut client, &inference("ModelStreamInfer"), None).await.0, "16");
}

#[tokio::test]
async fn idle_connections_of_a_revoked_principal_close_within_a_second_and_those_of_others_stay() {
    let locked = Locked::start().await;
    let (mut revoked, mut other, mut proxy) = (locked.connect(), locked.connect(), locked.connect());
    let mut http2 = locked.connect_http2().await;
    assert_eq!(status(&ask(&mut revoked, "GET", "/v2/models/m", Some("revoked.s")).await.0), 200);
    assert_eq!(status(&ask(&mut other, "GET", "/v2/models/m", Some("all.s")).await.0), 200);
    for token in ["revoked.s", "all.s"] {
        assert_eq!(status(&ask(&mut proxy, "GET", "/v2/models/m", Some(token)).await.0), 200);
    }
    assert_eq!(grpc(&mut http2, "inference.GRPCInferenceService/ModelReady", Some("revoked.s")).await.0, "0");
    let began = Instant::now();
    locked.stand_in.revoke("revoked.s");
    let mut rest = Vec::new();
    timeout(LIMIT, revoked.read_to_end(&mut rest)).await.expect("it stays open").unwrap();
    let closed = async {
        while http2.clone().ready().await.is_ok() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(LIMIT, closed).await.expect("it stays open");
    assert!(rest.is_empty() && began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    assert_eq!(status(&ask(&mut other, "GET", "/v2/models/m", Some("all.s")).await.0), 200);
    assert_eq!(status(&ask(&mut proxy, "GET", "/v2/models/m", Some("revoked.s")).await.0), 401);
    assert_eq!(status(&ask(&mut proxy, "GET", "/v2/models/m", Some("all.s")).await.0), 200);
}

#[tokio::test]
async fn a_request_of_a_revoked_principal_is_refused_and_its_connection_ends() {
    let locked = Locked::start().await;
    let mut connection = locked.connect();
    assert_eq!(status(&ask(&mut connection, "GET", "/v2/models/m", Some("revoked.s")).await.0), 200);
    locked.stand_in.revoke("revoked.s");
    // The daemon refuses the handle, although the gateway would still trust it.
    let (head, _) = ask(&mut connection, "GET", "/v2/models/m/ready", Some("revoked.s")).await;
    assert_eq!(status(&head), 401, "{head}");
    let mut rest = Vec::new();
    timeout(LIMIT, connection.read_to_end(&mut rest)).await.expect("it stays open").unwrap();
}

#[tokio::test]
async fn a_reply_of_a_stream_is_counted_until_its_client_has_taken_it() {
    const OUTPUT: usize = 100_000;
    let locked = Locked::start().await;
    locked.stand_in.set_output(vec![7; OUTPUT].into());
    let mut builder = h2::client::Builder::new();
    let (client, connection) = builder.initial_window_size(1000).handshake(locked.connect()).await.unwrap();
    tokio::spawn(connection);
    let mut client = client.ready().await.unwrap();
    let call = call("inference.GRPCInferenceService/ModelStreamInfer", Some("all.s"));
    let (response, mut body) = client.send_request(call, false).unwrap();
    // A request of the model `m`.
    body.send_data(Bytes::from_static(b"\0\0\0\0\x03\x0a\x01m"), false).unwrap();
    let mut replies = response.await.unwrap().into_body();
    let budget = locked.dispatch.budget();
    let counted = async |expected: bool| {
        let reached = async {
            while (budget.used() >= OUTPUT) != expected {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(LIMIT, reached).await.expect("another number of bytes in use");
    };
    counted(true).await;
    let mut received = 0;
    while received < OUTPUT {
        let piece = replies.data().await.unwrap().unwrap();
        replies.flow_control().release_capacity(piece.len()).unwrap();
        received += piece.len();
    }
    counted(false).await;
}
