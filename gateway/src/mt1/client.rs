//! A connection to the daemon as the handlers of requests use it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::Value;
use tokio::sync::watch;

use super::connection::{self, Shared};
use super::error::UNAUTHENTICATED;
use super::large::{LargeOutputs, OutputsKey, is_large};
use super::models::MetadataCache;
use super::outgoing::Outgoing;
use super::pending::Outcome;
use super::timeout::rounded_down;
use super::waiting::Waiting;
use super::{
    Cache, Code, Credential, DaemonError, Handle, INFER, Identities, Identity, InferReply, InferRequest, InputHeader,
    Message, ModelMetadata, ModelRef, Origin, RawReply, Regions, ReplyHeader, RequestHeader, microseconds,
};
use crate::settings::Settings;
use crate::tensor::Tensor;
use crate::trace::add_current;

/// The daemon answers a request at its deadline by itself, with the cause; only if it does not, the gateway does, this
/// much later.
const GRACE: Duration = Duration::from_secs(1);

/// Loading a model takes as long as it takes; the daemon bounds each step of it.
const ORDER_TIMEOUT: Duration = Duration::from_secs(3600);

/// How often unused shared memory is given back.
const TRIM: Duration = Duration::from_secs(5);

/// Headers of replies that are cached, by their bytes.
const CACHED_REPLIES: usize = 1024;
const CACHED_REPLY_BYTES: usize = 4096;

/// Models and signatures whose large outputs are known.
const CACHED_OUTPUTS: usize = 256;

/// A connection to the daemon. Clones share it. Each event loop has its own.
#[derive(Clone)]
pub struct Daemon {
    pub(super) inner: Arc<Inner>,
    caller: Caller,
}

/// The client that requests are sent for.
#[derive(Clone)]
enum Caller {
    /// No frame says so: the daemon has no `security`, or the gateway itself asks.
    Unnamed,
    /// Somebody without a credential.
    Anonymous,
    Identity(Arc<Identity>),
}

pub(super) struct Inner {
    shared: Arc<Shared>,
    control: Option<PathBuf>,
    request_timeout: Duration,
    /// The bytes that may wait to be written to the daemon before further requests are refused.
    max_unwritten: usize,
    replies: Cache<Bytes, Arc<ReplyHeader>>,
    pub(super) metadata: MetadataCache,
    /// Whether the daemon is ready, and when it was asked.
    ready: tokio::sync::Mutex<Option<(Instant, bool)>>,
    regions: Regions,
    /// The large outputs that requests had lately, so that the next ones have room for them in their regions.
    pub(super) large_outputs: Cache<OutputsKey, LargeOutputs>,
    identities: Identities,
    connected: watch::Receiver<bool>,
}

impl Daemon {
    /// Starts the task that connects to the daemon, in the current tokio runtime.
    pub fn start(settings: &Settings) -> Self {
        let limit = (settings.limits.max_outstanding / settings.threads.max(1)).max(1);
        let shared = Arc::new(Shared::new(limit));
        let (sender, connected) = watch::channel(false);
        tokio::spawn(connection::run(shared.clone(), settings.daemon.clone(), sender));
        let regions = Regions::new(settings.threads);
        tokio::spawn(trim(regions.clone()));
        let inner = Inner {
            shared,
            regions,
            large_outputs: Cache::new(CACHED_OUTPUTS),
            identities: Identities::default(),
            control: settings.control.clone(),
            request_timeout: settings.limits.request_timeout(),
            max_unwritten: settings.limits.max_buffered_bytes() / settings.threads.max(1),
            replies: Cache::new(CACHED_REPLIES),
            metadata: MetadataCache::default(),
            ready: tokio::sync::Mutex::default(),
            connected,
        };
        let inner = Arc::new(inner);
        if !settings.security {
            return Self { inner, caller: Caller::Unnamed };
        }
        tokio::spawn(Identities::watch(Self { inner: inner.clone(), caller: Caller::Unnamed }));
        // A request that names no client must be allowed no more than one without credentials.
        Self { inner, caller: Caller::Anonymous }
    }

    /// Returns the daemon as somebody sees it whose credential has been verified.
    pub fn for_identity(&self, identity: Arc<Identity>) -> Self {
        Self { inner: self.inner.clone(), caller: Caller::Identity(identity) }
    }

    /// Returns the daemon as the gateway itself sees it, for `MT1:authenticate`.
    pub(super) fn without_identity(&self) -> Self {
        Self { inner: self.inner.clone(), caller: Caller::Unnamed }
    }

    /// Returns the credentials that clients have shown.
    pub(super) fn identities(&self) -> &Identities {
        &self.inner.identities
    }

    /// Has the daemon verify a credential.
    pub async fn authenticate(&self, credential: Credential, origin: Origin) -> Result<Arc<Identity>, DaemonError> {
        self.inner.identities.get(&self.without_identity(), credential, origin).await
    }

    /// Returns the handle for which requests are sent now.
    pub fn handle(&self) -> Handle {
        match &self.caller {
            Caller::Unnamed => Handle::NONE,
            Caller::Anonymous => Handle::anonymous(),
            Caller::Identity(identity) => identity.handle(),
        }
    }

    /// Returns once the daemon is connected.
    pub async fn connected(&self) {
        // The sender's task never ends.
        let _ = self.inner.connected.clone().wait_for(|&connected| connected).await;
    }

    /// Returns the shared memory for large tensors.
    pub fn regions(&self) -> &Regions {
        &self.inner.regions
    }

    /// Runs a model. Dropping the future cancels the request (`MT1:cancel`).
    ///
    /// Waits for the daemon if it is not connected, at most until the request's deadline.
    pub async fn infer(&self, request: InferRequest) -> Result<InferReply, DaemonError> {
        if is_large(&request)
            && let Some(result) = Box::pin(self.infer_in_region(&request)).await
        {
            return result;
        }
        let inputs: Vec<InputHeader<'_>> = request
            .inputs
            .iter()
            .map(|input| InputHeader { name: &input.name, datatype: input.datatype, shape: &input.shape, area: None })
            .collect();
        let timeout = self.timeout(request.timeout);
        let header = RequestHeader {
            model: &request.model,
            inputs: &inputs,
            outputs: &request.outputs,
            areas: &[],
            signature_name: request.signature_name.as_deref(),
            priority: request.priority,
            timeout_us: microseconds(timeout),
        };
        let header = header.to_bytes().into();
        let tensors = request.inputs.into_iter().map(|input| input.data).collect();
        let reply = self.infer_raw(header, tensors, timeout).await?;
        let header = self.reply_header(&reply)?;
        let outputs = header.outputs.iter().zip(reply.tensors).map(|(output, data)| Tensor {
            name: output.name.clone(),
            datatype: output.datatype,
            shape: output.shape.clone(),
            data,
        });
        Ok(InferReply {
            model_name: header.model_name.clone(),
            model_version: header.model_version.clone(),
            outputs: outputs.collect(),
        })
    }

    /// Returns the time that a request gets: what its client states, but no more than `request_timeout_s`.
    ///
    /// Stated times are rounded down by less than 5 %. Clients that compute them from a deadline state another one with
    /// each request, and the daemon reads only headers quickly that it has seen before.
    pub fn timeout(&self, stated: Option<Duration>) -> Duration {
        match stated {
            Some(stated) if stated < self.inner.request_timeout => rounded_down(stated),
            _ => self.inner.request_timeout,
        }
    }

    /// Runs a model with a header made before. As `infer`, without its conversions.
    ///
    /// The trace of the request that is being answered is added to the header.
    ///
    /// `timeout` must be that of the header.
    pub async fn infer_raw(
        &self,
        header: Bytes,
        tensors: Vec<Bytes>,
        timeout: Duration,
    ) -> Result<RawReply, DaemonError> {
        self.exchange(INFER, add_current(header), tensors, timeout).await
    }

    /// As `infer_raw`, for a request with tensors in a region, which is written at once.
    ///
    /// The event loop may read other clients' bodies first before it has its next turn to write. That can take longer than
    /// the daemon and a worker need for this request.
    pub async fn infer_in_areas(
        &self,
        header: Bytes,
        tensors: Vec<Bytes>,
        timeout: Duration,
    ) -> Result<RawReply, DaemonError> {
        let message = Message { at_once: true, ..self.message(INFER, add_current(header), tensors) };
        self.exchange_message(message, timeout).await
    }

    /// Reads the header of a reply to `infer_raw`, which has as many frames as it says.
    pub fn reply_header(&self, reply: &RawReply) -> Result<Arc<ReplyHeader>, DaemonError> {
        let header = match self.inner.replies.get(&reply.header) {
            Some(header) => header,
            None => {
                let header = Arc::new(ReplyHeader::from_bytes(&reply.header)?);
                if reply.header.len() <= CACHED_REPLY_BYTES {
                    // A copy: the reply's bytes may be part of a larger message.
                    self.inner.replies.insert(Bytes::copy_from_slice(&reply.header), header.clone());
                }
                header
            }
        };
        if header.framed() != reply.tensors.len() {
            let message = "the daemon's reply has another number of frames than outputs";
            return Err(DaemonError::internal(message));
        }
        Ok(header)
    }

    /// Asks a kind without tensors, such as `MT1:model_metadata`, and returns the header of the reply.
    pub async fn call(&self, kind: &'static str, header: Value) -> Result<Value, DaemonError> {
        let header = Bytes::from(header.to_string());
        let reply = self.exchange(kind, header, Vec::new(), self.inner.request_timeout).await?;
        read_json(&reply.header)
    }

    /// Asks a kind without tensors, and returns the reply as it was transmitted.
    ///
    /// Unlike `call`, it does not wait for a daemon that is not connected. The error is then UNAVAILABLE /
    /// `not_connected`, as it is after `limit` without a reply.
    pub async fn query(&self, kind: &'static str, header: Bytes, limit: Duration) -> Result<RawReply, DaemonError> {
        if !*self.inner.connected.borrow() {
            return Err(DaemonError::not_connected());
        }
        let waiting = self.exchange(kind, header, Vec::new(), limit);
        tokio::time::timeout(limit, waiting).await.unwrap_or_else(|_| {
            let message = format!("the daemon did not answer within {} s", limit.as_secs_f64());
            Err(DaemonError::new(Code::Unavailable, "not_connected", message))
        })
    }

    /// Returns whether the daemon is ready. One that does not answer within `limit` is not.
    pub async fn is_ready(&self, limit: Duration) -> bool {
        let asked = self.call("MT1:server_ready", serde_json::json!({}));
        matches!(tokio::time::timeout(limit, asked).await, Ok(Ok(reply)) if reply["ready"] == true)
    }

    /// Returns whether the daemon was ready within the last `age`. All callers at one time ask it once together.
    pub async fn was_ready(&self, age: Duration, limit: Duration) -> bool {
        let mut known = self.inner.ready.lock().await;
        match *known {
            Some((asked_at, ready)) if asked_at.elapsed() < age => ready,
            _ => {
                let ready = self.is_ready(limit).await;
                *known = Some((Instant::now(), ready));
                ready
            }
        }
    }

    /// Returns a model's metadata, at most a second old.
    pub async fn model_metadata(&self, model: &ModelRef) -> Result<Arc<ModelMetadata>, DaemonError> {
        self.inner.metadata.get(self, model).await
    }

    /// Gives an order (`MT1:load`, `MT1:unload`, `MT1:reload`) through the daemon's control endpoint.
    ///
    /// Handlers check `settings.operate` themselves, in their interface's words.
    pub async fn operate(&self, kind: &'static str, header: Value) -> Result<Value, DaemonError> {
        let Some(path) = &self.inner.control else {
            return Err(DaemonError::unsupported("the daemon has no control endpoint"));
        };
        let header = Bytes::from(header.to_string());
        let order = async {
            let handle = self.handle();
            let outcome = give_order(path, handle, kind, &header).await?;
            match (&self.caller, &outcome) {
                (Caller::Identity(identity), Err(error)) if error.reason == UNAUTHENTICATED => {
                    match identity.renewed(self, handle).await {
                        Ok(renewed) => give_order(path, renewed, kind, &header).await,
                        Err(error) => Ok(Err(error)),
                    }
                }
                _ => Ok(outcome),
            }
        };
        match tokio::time::timeout(ORDER_TIMEOUT, order).await {
            Ok(Ok(outcome)) => read_json(&outcome?.header),
            Ok(Err(error)) => {
                let message = format!("the daemon's control endpoint cannot be used: {error}");
                Err(DaemonError::new(Code::Unavailable, "not_connected", message))
            }
            Err(_) => Err(DaemonError::new(Code::DeadlineExceeded, "deadline", "the order took too long")),
        }
    }

    /// Sends a request for the caller, and waits for its outcome.
    async fn exchange(
        &self,
        kind: &'static str,
        header: Bytes,
        tensors: Vec<Bytes>,
        timeout: Duration,
    ) -> Result<RawReply, DaemonError> {
        self.exchange_message(self.message(kind, header, tensors), timeout).await
    }

    fn message(&self, kind: &'static str, header: Bytes, tensors: Vec<Bytes>) -> Message {
        Message { handle: self.handle(), kind, header, tensors, at_once: false }
    }

    async fn exchange_message(&self, message: Message, timeout: Duration) -> Result<RawReply, DaemonError> {
        match &self.caller {
            // Only with `security`, so on the heap: the future of the others stays small.
            Caller::Identity(identity) => Box::pin(self.exchange_for(identity, message, timeout)).await,
            Caller::Unnamed | Caller::Anonymous => self.send(message, timeout)?.await,
        }
    }

    /// As `exchange`. If the daemon does not know the handle any more, it is asked for another one, once.
    async fn exchange_for(
        &self,
        identity: &Identity,
        message: Message,
        timeout: Duration,
    ) -> Result<RawReply, DaemonError> {
        let until = Instant::now() + timeout;
        let outcome = self.send(message.clone(), timeout)?.await;
        if !outcome.as_ref().is_err_and(|error| error.reason == UNAUTHENTICATED) {
            return outcome;
        }
        let handle = identity.renewed(self, message.handle).await?;
        self.send(Message { handle, ..message }, until.saturating_duration_since(Instant::now()))?.await
    }

    /// Adds a request to the table, and has it written if the daemon is connected.
    fn send(&self, message: Message, timeout: Duration) -> Result<Waiting, DaemonError> {
        let now = Instant::now();
        let mut state = self.inner.shared.lock();
        let (pending, connection) = state.parts();
        // Also requests that were cancelled are written. Their number has no other limit.
        if let Some(unwritten) = connection.as_ref().map(|outgoing| outgoing.len())
            && unwritten > self.inner.max_unwritten
        {
            let message = format!("{unwritten} bytes of requests wait for the daemon, which does not read them");
            return Err(DaemonError::queue_full(message));
        }
        // Without a connection nobody else answers at the deadline.
        let expires_at = now + timeout + if connection.is_some() { GRACE } else { Duration::ZERO };
        let at_once = message.at_once;
        let ticket = pending.add(message, expires_at, connection)?;
        if at_once {
            state.write_at_once();
        } else {
            state.wake();
        }
        drop(state);
        Ok(Waiting::new(self.inner.shared.clone(), ticket))
    }
}

/// Gives an order over a connection of its own to the control endpoint at this path.
async fn give_order(path: &Path, handle: Handle, kind: &str, header: &Bytes) -> io::Result<Outcome> {
    let (mut stream, mut buffer) = connection::connect(path).await?;
    let mut outgoing = Outgoing::default();
    outgoing.push_message(handle, kind, b"order", header, &[]);
    outgoing.write_all(&mut stream).await?;
    connection::receive_reply(&mut stream, &mut buffer).await
}

/// Gives unused shared memory back, once in a while. Never returns.
async fn trim(regions: Regions) {
    loop {
        tokio::time::sleep(TRIM).await;
        regions.trim();
    }
}

fn read_json(text: &[u8]) -> Result<Value, DaemonError> {
    serde_json::from_slice(text)
        .map_err(|error| DaemonError::internal(format!("the daemon's reply cannot be read: {error}")))
}

#[cfg(test)]
mod tests;
