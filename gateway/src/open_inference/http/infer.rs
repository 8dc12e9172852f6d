//! Inference over HTTP: from a request to what the daemon gets, and what is remembered for the next request.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use ::http::{HeaderMap, HeaderName};
use bytes::Bytes;

use super::infer_large::is_large;
use super::infer_request::InferBody;
use super::infer_response::Head;
use super::request_tensors::Source;
use crate::context::Context;
use crate::http::{Request, Response, of_response, read_body, stated_timeout};
use crate::mt1::{Cache, Code, DaemonError, ModelRef, microseconds};
use crate::threads::in_thread;

/// The length of the JSON in a body that has binary tensors after it.
pub const HEADER_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");

/// More JSON is read or written in another thread.
pub const INLINE_JSON_BYTES: usize = 64 << 10;

/// What is remembered at most: paths, requests of each path, and the bytes of a path or of a request's JSON.
const CACHED_PATHS: usize = 512;
const CACHED_PLANS: usize = 32;
const CACHED_BYTES: usize = 4096;

/// What is remembered of requests, so that the next one with the same path and the same JSON needs no parsing.
pub struct Endpoints {
    paths: Cache<String, Arc<Endpoint>>,
}

impl Default for Endpoints {
    fn default() -> Self {
        Self { paths: Cache::new(CACHED_PATHS) }
    }
}

impl Endpoints {
    /// Returns the endpoint of a path that was remembered.
    pub fn get(&self, path: &str) -> Option<Arc<Endpoint>> {
        self.paths.get(path)
    }

    /// Remembers the endpoint of a path. Must follow a request that succeeded: there are as many paths of models that do
    /// not exist as clients make up.
    pub fn remember(&self, path: &str, endpoint: Endpoint) {
        if path.len() <= CACHED_BYTES {
            self.paths.insert(path.to_owned(), Arc::new(endpoint));
        }
    }
}

/// A model, and the requests that it had.
pub struct Endpoint {
    pub(super) model: ModelRef,
    plans: Cache<Bytes, Arc<Plan>>,
}

/// What follows from a request's JSON.
pub(super) struct Plan {
    pub model: ModelRef,
    pub body: InferBody,
    /// The header of MT1's request, if all tensors are in frames.
    pub header: Bytes,
    pub timeout: Duration,
    pub binary_bytes: usize,
    /// The JSON of the last response.
    pub head: Mutex<Option<Head>>,
    /// The outputs of the last response that may be in shared memory, and their bytes.
    pub large_outputs: Mutex<Vec<(String, usize)>>,
}

impl Endpoint {
    pub fn new(model: ModelRef) -> Self {
        Self { model, plans: Cache::new(CACHED_PLANS) }
    }

    /// Answers a request.
    pub async fn infer(&self, context: &Context, mut request: Request) -> Result<Response, DaemonError> {
        let json_bytes = header_length(request.headers())?;
        let timeout = stated_timeout(request.headers())?;
        let accepted = of_response(request.headers());
        if let Some(length) = json_bytes
            && is_large(&request, length)
        {
            return Box::pin(self.infer_large(context, request, length, timeout, accepted)).await;
        }
        let body = read_body(context, &mut request).await?;
        let held = request.body().held().clone();
        drop(request);
        let (text, binary) = match json_bytes {
            None => (body, Bytes::new()),
            Some(0) => return self.infer_raw_tensor(context, body, timeout).await,
            Some(length) if length <= body.len() => (body.slice(..length), body.slice(length..)),
            Some(length) => {
                let size = body.len();
                let message = format!("Inference-Header-Content-Length is {length}, but the body has {size} bytes");
                return Err(DaemonError::invalid(message));
            }
        };
        let (plan, unknown) = self.plan(context, text, timeout).await?;
        let tensors = plan.tensors(&binary)?;
        held.cover(tensors.iter().map(Bytes::len).sum())?;
        let reply = context.daemon.infer_raw(plan.header.clone(), tensors, plan.timeout).await?;
        self.remember(unknown, &plan);
        plan.respond(context, reply, accepted).await
    }

    /// Returns what follows from a request's JSON. If it is new and worth remembering, its JSON comes with it, for
    /// `remember`.
    pub(super) async fn plan(
        &self,
        context: &Context,
        text: Bytes,
        timeout: Option<Duration>,
    ) -> Result<(Arc<Plan>, Option<Bytes>), DaemonError> {
        let cached = timeout.is_none() && text.len() <= CACHED_BYTES;
        if cached && let Some(plan) = self.plans.get(&text[..]) {
            return Ok((plan, None));
        }
        let body = if text.len() > INLINE_JSON_BYTES {
            let text = text.clone();
            in_thread(move || InferBody::parse(&text)).await?
        } else {
            InferBody::parse(&text)?
        };
        let model = self.model(&body);
        let stated = [body.timeout, timeout].into_iter().flatten().min();
        let timeout = context.daemon.timeout(stated);
        let plan = Arc::new(Plan {
            header: body.header(&model, microseconds(timeout), &[], &[]),
            timeout,
            binary_bytes: body.binary_bytes()?,
            model,
            body,
            head: Mutex::new(None),
            large_outputs: Mutex::default(),
        });
        let all_binary = plan.body.inputs.iter().all(|input| matches!(input.source, Source::Binary(_)));
        let unknown = (cached && plan.body.id.is_none() && all_binary).then_some(text);
        Ok((plan, unknown))
    }

    /// Remembers the plan of a request that succeeded. Others would fill the memory with what clients make up.
    pub(super) fn remember(&self, text: Option<Bytes>, plan: &Arc<Plan>) {
        if let Some(text) = text {
            // A copy: the text may be part of a larger body.
            self.plans.insert(Bytes::copy_from_slice(&text), plan.clone());
        }
    }

    fn model(&self, body: &InferBody) -> ModelRef {
        let label = body.version_label.clone().or_else(|| self.model.label.clone());
        ModelRef { label, ..self.model.clone() }
    }
}

impl Plan {
    /// Returns the tensors in the order of the inputs. `binary` must be exactly what the binary inputs need.
    pub fn tensors(&self, binary: &Bytes) -> Result<Vec<Bytes>, DaemonError> {
        if binary.len() != self.binary_bytes {
            return Err(self.wrong_size(binary.len()));
        }
        let mut at = 0;
        let tensors = self.body.inputs.iter().map(|input| match &input.source {
            Source::Json(data) => data.clone(),
            Source::Binary(size) => {
                at += size;
                binary.slice(at - size..at)
            }
        });
        Ok(tensors.collect())
    }

    /// Returns the error for another number of bytes after the JSON than its inputs need.
    pub fn wrong_size(&self, bytes: usize) -> DaemonError {
        let needed = self.binary_bytes;
        let message = format!("{bytes} bytes follow the JSON, but 'binary_data_size' of all inputs is {needed}");
        DaemonError::new(Code::InvalidArgument, "size_mismatch", message)
    }
}

/// Returns the length of the JSON that a request states; None: the whole body is JSON.
fn header_length(headers: &HeaderMap) -> Result<Option<usize>, DaemonError> {
    let Some(value) = headers.get(HEADER_LENGTH) else { return Ok(None) };
    let text = value.to_str().unwrap_or_default().trim();
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        let message = format!("Inference-Header-Content-Length is not an integer from 0 on: {text:?}");
        return Err(DaemonError::invalid(message));
    }
    Ok(Some(text.parse().unwrap_or(usize::MAX)))
}

#[cfg(test)]
mod tests {
    use ::http::HeaderValue;

    use super::*;

    #[test]
    fn header_lengths_are_integers_from_0_on() {
        let read = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(HEADER_LENGTH, HeaderValue::from_static(value));
            header_length(&headers)
        };
        assert_eq!(header_length(&HeaderMap::new()), Ok(None));
        assert_eq!(read("0"), Ok(Some(0)));
        assert_eq!(read(" 17 "), Ok(Some(17)));
        assert_eq!(read("99999999999999999999999"), Ok(Some(usize::MAX)));
        for wrong in ["-1", "", "+5", "1.0", "0x10", "1 2"] {
            assert_eq!(read(wrong).unwrap_err().code, Code::InvalidArgument, "{wrong}");
        }
    }
}
