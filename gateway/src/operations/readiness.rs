//! `/healthz` and `/readyz`, for the health checks of orchestrators.

use ::http::{HeaderValue, StatusCode, header};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::context::Context;
use crate::http::{Response, json_response};
use crate::mt1::DaemonError;

/// The parts of the status that tell why the daemon is not ready.
#[derive(Deserialize)]
struct Status {
    daemon: DaemonState,
    models: Vec<ModelState>,
}

#[derive(Deserialize)]
struct DaemonState {
    state: String,
}

#[derive(Deserialize)]
struct ModelState {
    name: String,
    version: Option<String>,
    state: String,
    cause: Option<String>,
}

/// 200 if the daemon answers: it and the gateway are alive.
pub async fn live(context: &Context) -> Response {
    match context.operations.live.get(&context.daemon).await {
        Ok(_) => json_response(StatusCode::OK, r#"{"live":true}"#.to_owned()),
        Err(error) => unavailable("live", &error),
    }
}

/// 200 if the daemon is ready, and this process accepts requests; otherwise the body states why not.
pub async fn ready(context: &Context) -> Response {
    if context.is_draining() {
        return not_now(json!({"ready": false, "error": "the gateway is draining"}));
    }
    let reply = match context.operations.ready.get(&context.daemon).await {
        Ok(content) => content,
        Err(error) => return unavailable("ready", &error),
    };
    let mut report: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
    if report["ready"] == true {
        let body = if context.settings.security { r#"{"ready":true}"#.into() } else { reply.body.clone() };
        return json_response(StatusCode::OK, body);
    }
    if context.settings.security {
        return not_now(json!({"ready": false})); // anybody may ask this
    }
    let Ok(status) = context.operations.reports(&context.daemon).status.get(&context.daemon).await else {
        return not_now(report);
    };
    if let Ok(status) = serde_json::from_slice::<Status>(&status.body)
        && report.is_object()
    {
        let not_ready = status.models.iter().filter(|model| !matches!(&model.state[..], "ready" | "unloaded"));
        let not_ready = not_ready.map(
            |model| json!({"name": model.name, "version": model.version, "state": model.state, "cause": model.cause}),
        );
        report["models_not_ready"] = Value::from_iter(not_ready);
        report["state"] = json!(status.daemon.state);
    }
    not_now(report)
}

fn unavailable(what: &str, error: &DaemonError) -> Response {
    not_now(json!({what: false, "error": error.message}))
}

fn not_now(body: Value) -> Response {
    let mut response = json_response(StatusCode::SERVICE_UNAVAILABLE, body.to_string());
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    response
}
