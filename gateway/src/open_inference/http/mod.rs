//! The Open Inference Protocol over HTTP: paths below `/v2`.

mod error;
mod infer;
mod infer_large;
mod infer_raw;
mod infer_request;
mod infer_response;
mod json_values;
mod request_tensors;

pub use infer::Endpoints;

use std::borrow::Cow;

use ::http::{Method, StatusCode};
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

pub use error::error_response;
use error::method_not_allowed;
use infer::Endpoint;

use super::{refusals, repository};
use crate::context::Context;
use crate::http::{Request, Response, json_response, path_unknown, read_body, stated_timeout};
use crate::mt1::{DaemonError, ModelRef};

/// Answers a request whose path begins with `/v2`.
pub async fn handle(context: Context, request: Request) -> Response {
    if request.method() == Method::POST
        && let Some(endpoint) = context.endpoints.get(request.uri().path())
    {
        return endpoint.infer(&context, request).await.unwrap_or_else(|error| error_response(&error));
    }
    match Box::pin(route(&context, request)).await {
        Ok(response) => response,
        Err(error) => error_response(&error),
    }
}

async fn route(context: &Context, request: Request) -> Result<Response, DaemonError> {
    let path = request.uri().path().to_owned();
    let Some(segments) = split(&path) else {
        return Err(DaemonError::invalid("the path is not UTF-8"));
    };
    let segments: Vec<&str> = segments.iter().map(|segment| &**segment).collect();
    let is_get = matches!(*request.method(), Method::GET | Method::HEAD);
    let is_post = request.method() == Method::POST;
    let get = Some("GET, HEAD").filter(|_| !is_get);
    let post = Some("POST").filter(|_| !is_post);
    let refuse = |allowed: Option<&'static str>| allowed.map(method_not_allowed);
    let (model, action) = match segments.as_slice() {
        [] => {
            if let Some(refused) = refuse(get) {
                return Ok(refused);
            }
            return server_metadata(context).await;
        }
        ["health", what @ ("live" | "ready")] => {
            return Ok(match refuse(get) {
                Some(refused) => refused,
                None => health(context, what).await,
            });
        }
        ["models", "stats"] => {
            if let Some(refused) = refuse(get) {
                return Ok(refused);
            }
            return query(context, "MT1:statistics", json!({})).await;
        }
        ["repository", "index"] => {
            if let Some(refused) = refuse(post) {
                return Ok(refused);
            }
            return repository_index(context, request).await;
        }
        ["repository", "models", name, order @ ("load" | "unload")] => {
            if let Some(refused) = refuse(post) {
                return Ok(refused);
            }
            return repository_order(context, request, name, order).await;
        }
        ["systemsharedmemory" | "cudasharedmemory", ..] => {
            return Err(refusals::shared_memory());
        }
        ["trace", "setting"] | ["logging"] => {
            return Err(refusals::trace_and_log());
        }
        ["models", name, "versions", version, action @ ..] => {
            let model = ModelRef { name: (*name).to_owned(), version: Some((*version).to_owned()), label: None };
            (model, action)
        }
        ["models", name, action @ ..] => (ModelRef::latest(*name), action),
        _ => return Err(path_unknown()),
    };
    let kind = match action {
        [] => "MT1:model_metadata",
        ["config"] => "MT1:model_config",
        ["stats"] => "MT1:statistics",
        ["ready"] => {
            return match refuse(get) {
                Some(refused) => Ok(refused),
                None => model_ready(context, &model).await,
            };
        }
        ["infer"] => {
            if let Some(refused) = refuse(post) {
                return Ok(refused);
            }
            let endpoint = Endpoint::new(model);
            let response = endpoint.infer(context, request).await?;
            context.endpoints.remember(&path, endpoint);
            return Ok(response);
        }
        ["trace", "setting"] => return Err(refusals::trace_and_log()),
        ["generate" | "generate_stream"] => {
            return Err(DaemonError::unsupported(format!(
                "'{}' is not supported: models answer 'infer'",
                action.join("/")
            )));
        }
        _ => return Err(path_unknown()),
    };
    match refuse(get) {
        Some(refused) => Ok(refused),
        None => query(context, kind, model.to_header()).await,
    }
}

/// Returns the decoded segments of a path after `/v2`, or None if one is not UTF-8. A slash at the end does not count.
fn split(path: &str) -> Option<Vec<Cow<'_, str>>> {
    let mut segments: Vec<&str> = path.split('/').skip(2).collect();
    if segments.last().is_some_and(|last| last.is_empty()) {
        segments.pop();
    }
    segments.into_iter().map(|segment| percent_decode_str(segment).decode_utf8().ok()).collect()
}

async fn health(context: &Context, what: &str) -> Response {
    let kind = if what == "live" { "MT1:server_live" } else { "MT1:server_ready" };
    let reply = context.daemon.call(kind, json!({})).await;
    let healthy = reply.is_ok_and(|reply| reply[what] == true);
    let status = if healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    json_response(status, json!({what: healthy}).to_string())
}

async fn server_metadata(context: &Context) -> Result<Response, DaemonError> {
    let metadata = context.daemon.call("MT1:server_metadata", json!({})).await?;
    let extensions: Vec<&str> = refusals::extensions(&metadata).collect();
    let metadata = json!({"name": metadata["name"], "version": metadata["version"], "extensions": extensions});
    Ok(json_response(StatusCode::OK, metadata.to_string()))
}

/// Asks the daemon, and returns its answer as it is, without what only MT1's clients understand.
async fn query(context: &Context, kind: &'static str, header: Value) -> Result<Response, DaemonError> {
    let mut reply = context.daemon.call(kind, header).await?;
    if let Some(reply) = reply.as_object_mut() {
        reply.remove("signature_defs");
    }
    // Not compressed: the asyncio form of tritonclient accepts gzip, but expects it in answers to inference alone.
    Ok(json_response(StatusCode::OK, reply.to_string()))
}

async fn model_ready(context: &Context, model: &ModelRef) -> Result<Response, DaemonError> {
    let reply = context.daemon.call("MT1:model_ready", model.to_header()).await?;
    let ready = reply["ready"] == true;
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    Ok(json_response(status, json!({"name": reply["name"], "ready": ready}).to_string()))
}

async fn repository_index(context: &Context, mut request: Request) -> Result<Response, DaemonError> {
    let options = read_options(context, &mut request).await?;
    let entries = repository::index(context, options["ready"] == true).await?;
    let entries = entries.into_iter().map(|entry| {
        let mut written = json!({"name": entry.name, "state": entry.state, "reason": entry.reason});
        if !entry.version.is_empty() {
            written["version"] = json!(entry.version);
        }
        written
    });
    Ok(json_response(StatusCode::OK, Value::from_iter(entries).to_string()))
}

async fn repository_order(
    context: &Context,
    mut request: Request,
    name: &str,
    order: &str,
) -> Result<Response, DaemonError> {
    repository::check_allowed(context)?;
    stated_timeout(request.headers())?;
    let options = read_options(context, &mut request).await?;
    let parameters = options["parameters"].as_object();
    refusals::check_load_parameters(parameters.into_iter().flatten().map(|(name, _)| name))?;
    if order == "load" {
        repository::load(context, name).await?;
    } else {
        repository::unload(context, name).await?;
    }
    Ok(json_response(StatusCode::OK, "{}".to_owned()))
}

/// Reads a body that may be missing, or a JSON object.
async fn read_options(context: &Context, request: &mut Request) -> Result<Value, DaemonError> {
    let body = read_body(context, request).await?;
    if body.trim_ascii().is_empty() {
        return Ok(json!({}));
    }
    match serde_json::from_slice(&body) {
        Ok(options @ Value::Object(_)) => Ok(options),
        Ok(_) => Err(DaemonError::invalid("the body is not a JSON object")),
        Err(error) => Err(DaemonError::invalid(format!("the body is not JSON: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::split;

    #[test]
    fn paths_are_split_and_decoded() {
        let table: &[(&str, Option<&[&str]>)] = &[
            ("/v2", Some(&[])),
            ("/v2/", Some(&[])),
            ("/v2/health/live", Some(&["health", "live"])),
            ("/v2/models/a%2Fb%20c/infer", Some(&["models", "a/b c", "infer"])),
            ("/v2/models//infer", Some(&["models", "", "infer"])),
            ("/v2/models/%ff", None),
        ];
        for (path, expected) in table {
            let segments = split(path);
            let segments: Option<Vec<&str>> = segments.as_ref().map(|list| list.iter().map(|item| &**item).collect());
            assert_eq!(segments.as_deref(), *expected, "{path}");
        }
    }
}
