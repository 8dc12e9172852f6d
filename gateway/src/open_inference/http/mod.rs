//! The Open Inference Protocol over HTTP: paths below `/v2`.

mod error;
mod infer;
mod infer_large;
mod infer_raw;
mod infer_request;
mod infer_response;
mod json_values;
mod paths;
mod request_tensors;

pub use infer::Endpoints;

use ::http::{Method, StatusCode};
use serde_json::{Value, json};

pub use error::error_response;
use error::method_not_allowed;
use infer::{Endpoint, INLINE_JSON_BYTES};
use paths::{Asked, route};

use super::{refusals, repository};
use crate::context::Context;
use crate::http::{Request, Response, json_response, read_body, stated_timeout};
use crate::json::{Error, Kind, Scanner};
use crate::mt1::{DaemonError, ModelRef};
use crate::threads::in_thread;

/// Answers a request whose path begins with `/v2`.
pub async fn handle(context: Context, request: Request) -> Response {
    if request.method() == Method::POST
        && let Some(endpoint) = context.endpoints.get(request.uri().path())
    {
        return endpoint.infer(&context, request).await.unwrap_or_else(|error| error_response(&error));
    }
    match Box::pin(answer(&context, request)).await {
        Ok(response) => response,
        Err(error) => error_response(&error),
    }
}

async fn answer(context: &Context, request: Request) -> Result<Response, DaemonError> {
    let (verb, asked, model) = route(request.uri().path())?;
    if !verb.allows(request.method()) {
        return Ok(method_not_allowed(verb.methods()));
    }
    match asked {
        Asked::ServerMetadata => server_metadata(context).await,
        Asked::Live => Ok(health(context, "live").await),
        Asked::Ready => Ok(health(context, "ready").await),
        Asked::AllStatistics => query(context, "MT1:statistics", json!({})).await,
        Asked::Metadata => query(context, "MT1:model_metadata", model.to_header()).await,
        Asked::Config => query(context, "MT1:model_config", model.to_header()).await,
        Asked::Statistics => query(context, "MT1:statistics", model.to_header()).await,
        Asked::ModelReady => model_ready(context, &model).await,
        Asked::Infer => {
            let path = request.uri().path().to_owned();
            let endpoint = Endpoint::new(model);
            let response = endpoint.infer(context, request).await?;
            context.endpoints.remember(&path, endpoint);
            Ok(response)
        }
        Asked::Index => repository_index(context, request).await,
        Asked::Load => repository_order(context, request, &model.name, "load").await,
        Asked::Unload => repository_order(context, request, &model.name, "unload").await,
    }
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
    let entries = repository::index(context, options.ready).await?;
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
    read_options(context, &mut request).await?.parameters?;
    if order == "load" {
        repository::load(context, name).await?;
    } else {
        repository::unload(context, name).await?;
    }
    Ok(json_response(StatusCode::OK, "{}".to_owned()))
}

/// What the body of a request about the repository says.
#[derive(Debug)]
struct Options {
    /// Whether only models that are ready are asked for.
    ready: bool,
    /// Whether `load` and `unload` have the parameters.
    parameters: Result<(), DaemonError>,
}

/// Reads a body that may be missing, or a JSON object.
async fn read_options(context: &Context, request: &mut Request) -> Result<Options, DaemonError> {
    let body = read_body(context, request).await?;
    let is_large = body.len() > INLINE_JSON_BYTES;
    let read = move || {
        let options = options_of(&body);
        options.map_err(|error| DaemonError::invalid(format!("the body is not JSON: {error}")))
    };
    let options = if is_large { in_thread(read).await? } else { read()? };
    options.ok_or_else(|| DaemonError::invalid("the body is not a JSON object"))
}

/// Returns what a body says; None if it is something else than an object. Its values are not kept: Triton's clients may
/// send whole models.
fn options_of(body: &[u8]) -> Result<Option<Options>, Error> {
    let mut options = Options { ready: false, parameters: Ok(()) };
    if body.trim_ascii().is_empty() {
        return Ok(Some(options));
    }
    let mut scanner = Scanner::strict(body);
    if scanner.kind()? != Kind::Object {
        scanner.skip()?;
        return scanner.end().map(|()| None);
    }
    let mut object = scanner.object()?;
    while let Some(key) = scanner.next_key(&mut object)? {
        match &*key {
            "ready" => options.ready = scanner.skip()? == b"true",
            "parameters" if scanner.kind()? == Kind::Object => {
                let mut parameters = scanner.object()?;
                while let Some(name) = scanner.next_key(&mut parameters)? {
                    options.parameters = options.parameters.and_then(|()| refusals::check_load_parameter(&name));
                    scanner.skip()?;
                }
            }
            _ => drop(scanner.skip()?),
        }
    }
    scanner.end()?;
    Ok(Some(options))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_and_their_values_may_be_anything() {
        let large = format!(r#"{{"parameters": {{"file:1/model": "{}"}}, "ready": true}}"#, "A".repeat(1 << 20));
        for (body, ready, refused) in [
            ("", false, None),
            (" \n", false, None),
            ("{}", false, None),
            (r#"{"ready": true, "other": [{"ready": false}]}"#, true, None),
            (r#"{"ready": "true"}"#, false, None),
            (r#"{"ready": null, "parameters": null}"#, false, None),
            (r#"{"parameters": ["config"]}"#, false, None),
            (r#"{"parameters": {"unload_dependents": true}}"#, false, None),
            (r#"{"parameters": {"unload_dependents": 1, "config": {"a": [1]}, "b": 2}}"#, false, Some("'config'")),
            (&large, true, Some("'file:1/model'")),
        ] {
            let options = options_of(body.as_bytes()).expect(body).expect(body);
            assert_eq!(options.ready, ready, "{body}");
            match (options.parameters, refused) {
                (Ok(()), None) => {}
                (Err(error), Some(name)) => assert!(error.message.contains(name), "{}", error.message),
                (found, _) => panic!("{body}: {found:?}"),
            }
        }
        for body in ["[]", "1", "null"] {
            assert!(options_of(body.as_bytes()).expect(body).is_none(), "{body}");
        }
        for body in ["{", "{}x", "[] []", r#"{"ready": NaN}"#, r#"{"parameters": {"a"}}"#] {
            assert!(options_of(body.as_bytes()).is_err(), "{body}");
        }
    }
}
