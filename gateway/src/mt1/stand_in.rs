//! A stand-in of a daemon with `security`, for tests: it knows tokens, and answers each kind.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use super::handle::Handle;
use super::outgoing::Outgoing;
use super::zmtp::{self, Decoder, GREETING_BYTES, Incoming};

/// A message as it came.
#[derive(Clone, Debug, PartialEq)]
pub struct Received {
    /// Empty if there was none.
    pub handle: String,
    pub kind: String,
    pub header: Value,
}

#[derive(Default)]
struct State {
    /// Handles by token or certificate's name.
    handles: HashMap<String, String>,
    /// Handles and kinds that are refused.
    forbidden: HashSet<(String, String)>,
    received: Vec<Received>,
    /// Kinds that are not answered.
    silent: HashSet<String>,
    /// The data of the output that a model has, if it has one.
    output: Option<Bytes>,
}

/// The daemon. It ends with the test's runtime.
pub struct StandIn {
    pub path: PathBuf,
    state: Arc<Mutex<State>>,
}

impl StandIn {
    pub fn start() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("gateway-stand-in-{}-{}", std::process::id(), NUMBER.fetch_add(1, Relaxed));
        let path = std::env::temp_dir().join(name);
        let (listener, state) = (UnixListener::bind(&path).unwrap(), Arc::<Mutex<State>>::default());
        let shared = state.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, shared.clone()));
            }
        });
        Self { path, state }
    }

    /// Settings of a gateway for this daemon, with other settings.
    pub fn settings(&self, other: Value) -> crate::settings::Settings {
        let mut settings = json!({"version": "0", "daemon": self.path, "control": self.path, "listeners": [],
                                  "security": true});
        settings.as_object_mut().unwrap().extend(other.as_object().unwrap().clone());
        serde_json::from_value(settings).unwrap()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Makes a credential valid; it may be another handle than before.
    pub fn accept(&self, credential: &str, handle: &str) {
        self.state().handles.insert(credential.to_owned(), handle.to_owned());
    }

    /// Makes a credential and its handle invalid.
    pub fn revoke(&self, credential: &str) {
        self.state().handles.remove(credential);
    }

    pub fn forbid(&self, handle: &str, kind: &str) {
        self.state().forbidden.insert((handle.to_owned(), kind.to_owned()));
    }

    pub fn keep_silent(&self, kind: &str) {
        self.state().silent.insert(kind.to_owned());
    }

    /// Gives the model an output of UINT8.
    pub fn set_output(&self, data: Bytes) {
        self.state().output = Some(data);
    }

    /// Returns what has come of a kind.
    pub fn received(&self, kind: &str) -> Vec<Received> {
        self.state().received.iter().filter(|message| message.kind == kind).cloned().collect()
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(Path::new(&self.path));
    }
}

async fn serve(mut stream: UnixStream, state: Arc<Mutex<State>>) {
    let mut greeting = [0; GREETING_BYTES];
    if stream.read_exact(&mut greeting).await.is_err() {
        return;
    }
    let _ = stream.write_all(&[&zmtp::greeting()[..], &zmtp::ready()].concat()).await;
    let (mut decoder, mut buffer) = (Decoder::default(), bytes::BytesMut::new());
    loop {
        match decoder.next(&mut buffer).unwrap() {
            Some(Incoming::Message(frames)) => {
                let mut outgoing = Outgoing::default();
                answer(frames, &mut state.lock().unwrap(), &mut outgoing);
                let _ = outgoing.write_all(&mut stream).await;
            }
            Some(_) => {}
            None if stream.read_buf(&mut buffer).await.unwrap_or(0) == 0 => return,
            None => {}
        }
    }
}

fn answer(frames: Vec<Bytes>, state: &mut State, outgoing: &mut Outgoing) {
    let text = |frame: &Bytes| String::from_utf8(frame.to_vec()).unwrap();
    let named = !frames[0].is_empty();
    let handle = if named { text(&frames[0]) } else { String::new() };
    let frames = &frames[usize::from(named)..];
    let (kind, id) = (text(&frames[1]), frames[2].clone());
    let header = frames.get(3).map(|frame| serde_json::from_slice(frame).unwrap_or(Value::Null)).unwrap_or_default();
    state.received.push(Received { handle: handle.clone(), kind: kind.clone(), header: header.clone() });
    if kind == "MT1:cancel" || state.silent.contains(&kind) {
        return;
    }
    let frame = Handle::new(handle.as_bytes()).unwrap_or(Handle::NONE);
    let mut reply = |kind: &str, header: Value, tensors: &[Bytes]| {
        outgoing.push_message(frame, kind, &id, &Bytes::from(header.to_string()), tensors);
    };
    let mut refuse = |code: &str, reason: &str| {
        let error = json!({"error": {"code": code, "reason": reason, "message": format!("{reason} by the stand-in")}});
        reply("MT1:error", error, &[]);
    };
    if kind == "MT1:authenticate" {
        assert!(!named && header["from"].is_string(), "{header}");
        let credential = header["token"].as_str().or(header["certificate_name"].as_str()).unwrap();
        return match state.handles.get(credential) {
            Some(handle) => reply("MT1:ok", json!({"handle": handle, "principal": "p", "expires_ms": 60_000}), &[]),
            None => refuse("UNAUTHENTICATED", "unauthenticated"),
        };
    }
    if handle == "anonymous" && !matches!(kind.as_str(), "MT1:server_live" | "MT1:server_ready")
        || handle != "anonymous" && !state.handles.values().any(|known| *known == handle)
    {
        return refuse("UNAUTHENTICATED", "unauthenticated");
    }
    if state.forbidden.contains(&(handle.clone(), kind.clone())) {
        return refuse("PERMISSION_DENIED", "forbidden");
    }
    match kind.as_str() {
        "MT1:infer" => {
            let output = |data: &Bytes| json!({"name": "y", "datatype": "UINT8", "shape": [data.len()]});
            let outputs: Vec<Value> = state.output.iter().map(output).collect();
            let header = json!({"model_name": "m", "model_version": "1", "outputs": outputs});
            reply("MT1:ok", header, state.output.as_slice());
        }
        "MT1:metrics" => {
            let text = Bytes::from(format!("of {handle}\n"));
            reply("MT1:ok", json!({"content_type": "text/plain"}), &[text]);
        }
        "MT1:server_live" => reply("MT1:ok", json!({"live": true}), &[]),
        "MT1:server_ready" => reply("MT1:ok", json!({"ready": true, "secret": "of the daemon"}), &[]),
        _ => reply("MT1:ok", json!({"name": "m", "ready": true, "of": handle, "versions": ["1"], "models": []}), &[]),
    }
}
