//! TensorFlow Serving's REST interface: paths below `/v1`.

mod examples;
mod metadata_json;
mod paths;
mod predict;
mod results;

use std::time::Duration;

use ::http::StatusCode;
use bytes::Bytes;

use examples::ExamplesBody;
use paths::{Route, route};
use predict::PredictBody;

use super::classify::{self, Answered, Method, Results};
pub use super::errors::error_response;
use super::{errors, metadata, status};
use crate::budget::Held;
use crate::context::Context;
use crate::http::{Request, Response, compressed, json_response, of_response, read_body, stated_timeout};
use crate::mt1::{DaemonError, InferRequest, ModelRef};
use crate::threads::in_thread;

/// From this size on, text is read and written beside the event loop, which would stop for everyone otherwise.
const OFFLOAD_BYTES: usize = 64 * 1024;

/// Answers a request whose path begins with `/v1` in any case.
pub async fn handle(context: Context, request: Request) -> Response {
    let accepted = of_response(request.headers());
    match answer(&context, request).await {
        Ok(body) => compressed(json_response(StatusCode::OK, body), accepted).await,
        Err(error) => errors::error_response(&error),
    }
}

async fn answer(context: &Context, mut request: Request) -> Result<Vec<u8>, DaemonError> {
    let route = route(request.method(), request.uri().path())?;
    let model = match &route {
        Route::Status(model) => return Ok(status::body(&status::versions(&context.daemon, model).await?)),
        Route::Predict(model) | Route::Classify(model) | Route::Regress(model) | Route::Metadata(model) => model,
    };
    let body = match &route {
        Route::Metadata(_) => describe(context, model).await,
        _ => {
            let timeout = stated_timeout(request.headers())?;
            let body = read_body(context, &mut request).await?;
            let held = request.body().held();
            match &route {
                Route::Classify(_) => run_examples(context, model, Method::Classify, body, held, timeout).await,
                Route::Regress(_) => run_examples(context, model, Method::Regress, body, held, timeout).await,
                _ => predict(context, model, body, held, timeout).await,
            }
        }
    };
    body.map_err(|error| errors::translate(error, model))
}

async fn predict(
    context: &Context,
    model: &ModelRef,
    body: Bytes,
    held: &Held,
    timeout: Option<Duration>,
) -> Result<Vec<u8>, DaemonError> {
    let length = body.len();
    let metadata = match context.daemon.model_metadata(model).await {
        Ok(metadata) => metadata,
        // A body that is no JSON is the client's first problem, as for TensorFlow Serving.
        Err(error) => return offload(length, move || Err(predict::syntax_error(&body).unwrap_or(error))).await,
    };
    let read = offload(length, move || predict::read_body(&body, &metadata)).await?;
    let PredictBody { format, signature_name, inputs } = read;
    let request =
        InferRequest { model: model.clone(), inputs, outputs: Vec::new(), signature_name, priority: None, timeout };
    held.cover(request.bytes())?;
    let outputs = context.daemon.infer(request).await?.outputs;
    let length = outputs.iter().map(|tensor| tensor.data.len()).sum();
    offload(length, move || results::predictions(format, &outputs)).await
}

async fn run_examples(
    context: &Context,
    model: &ModelRef,
    method: Method,
    body: Bytes,
    held: &Held,
    timeout: Option<Duration>,
) -> Result<Vec<u8>, DaemonError> {
    let (length, limit) = (body.len(), context.settings.limits.max_body_bytes);
    let read = offload(length, move || examples::read_body(&body, limit)).await?;
    let ExamplesBody { signature_name, examples } = read;
    held.cover(examples.bytes())?;
    let answered = classify::run(context, model, &signature_name, method, &examples, timeout).await?;
    let Answered { results, .. } = answered;
    Ok(match &results {
        Results::Classes(result) => results::classifications(result),
        Results::Values(result) => results::regressions(result),
    })
}

/// Answers with the signatures of a model.
async fn describe(context: &Context, model: &ModelRef) -> Result<Vec<u8>, DaemonError> {
    let metadata = context.daemon.model_metadata(model).await?;
    let version = match &model.version {
        Some(version) => version.parse().ok(),
        None if model.label.is_some() => status::version_of_label(&context.daemon, model).await?,
        None => metadata.versions.last().and_then(|version| version.parse().ok()),
    };
    let signatures = metadata::signature_defs(&metadata)?;
    Ok(metadata_json::body(model, version.unwrap_or(0), &signatures))
}

/// Does work on so many bytes: at once if they are few, beside the event loop if they are many.
async fn offload<T: Send + 'static>(
    bytes: usize,
    work: impl FnOnce() -> Result<T, DaemonError> + Send + 'static,
) -> Result<T, DaemonError> {
    if bytes < OFFLOAD_BYTES { work() } else { in_thread(work).await }
}
