//! The model repository: which models there are, and loading and unloading them. For HTTP and gRPC.

use serde_json::{Value, json};

use crate::context::Context;
use crate::mt1::{Code, DaemonError};

/// A model's version in the repository's index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub name: String,
    /// Empty if the model has no numbered versions.
    pub version: String,
    /// `READY`, `LOADING`, `UNLOADING` or `UNAVAILABLE`.
    pub state: &'static str,
    /// Why it is not ready; empty if nothing is known.
    pub reason: String,
}

/// Returns all versions of all models, or only those that are ready.
pub async fn index(context: &Context, ready_only: bool) -> Result<Vec<Entry>, DaemonError> {
    let status = context.daemon.call("MT1:status", json!({})).await?;
    Ok(entries(&status, ready_only))
}

fn entries(status: &Value, ready_only: bool) -> Vec<Entry> {
    let models = status["models"].as_array().map(Vec::as_slice).unwrap_or_default();
    let entries = models.iter().map(|model| {
        let state = model["state"].as_str().unwrap_or_default();
        // Programs compare the reason of an unloaded model with Triton's word for it.
        let reason = match state {
            "ready" => "",
            "unloaded" => "unloaded",
            _ => model["cause"].as_str().unwrap_or_default(),
        };
        Entry {
            name: model["name"].as_str().unwrap_or_default().to_owned(),
            version: model["version"].as_str().unwrap_or_default().to_owned(),
            state: match state {
                "ready" => "READY",
                "loading" => "LOADING",
                "unloading" => "UNLOADING",
                _ => "UNAVAILABLE",
            },
            reason: reason.to_owned(),
        }
    });
    entries.filter(|entry| !ready_only || entry.state == "READY").collect()
}

/// Loads a model, or loads it again. Returns once it is served.
pub async fn load(context: &Context, name: &str) -> Result<(), DaemonError> {
    check_allowed(context)?;
    context.daemon.operate("MT1:load", json!({"model_name": name})).await.map(drop)
}

/// Unloads a model. Returns once its requests have been answered and its memory is free.
pub async fn unload(context: &Context, name: &str) -> Result<(), DaemonError> {
    check_allowed(context)?;
    context.daemon.operate("MT1:unload", json!({"model_name": name})).await.map(drop)
}

/// Fails unless clients of the gateway may change what the daemon serves.
pub fn check_allowed(context: &Context) -> Result<(), DaemonError> {
    if context.settings.operate {
        return Ok(());
    }
    let message = "loading, unloading and configuration changes are switched off here (gateway.operate is false)";
    Err(DaemonError::new(Code::PermissionDenied, "permission_denied", message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_index_has_triton_s_states() {
        let status = json!({"models": [
            {"name": "a", "version": "3", "state": "ready", "cause": "on one slot"},
            {"name": "a", "version": "4", "state": "loading", "cause": null},
            {"name": "b", "version": null, "state": "failed", "cause": "no such file"},
            {"name": "c", "version": null, "state": "unloaded", "cause": "'c' is unloaded"}]});
        let read = |ready| {
            let entries = entries(&status, ready);
            entries.into_iter().map(|entry| (entry.name, entry.version, entry.state, entry.reason)).collect::<Vec<_>>()
        };
        let ready = ("a".to_owned(), "3".to_owned(), "READY", String::new());
        assert_eq!(read(true), std::slice::from_ref(&ready));
        let expected = [
            ready,
            ("a".to_owned(), "4".to_owned(), "LOADING", String::new()),
            ("b".to_owned(), String::new(), "UNAVAILABLE", "no such file".to_owned()),
            ("c".to_owned(), String::new(), "UNAVAILABLE", "unloaded".to_owned()),
        ];
        assert_eq!(read(false), expected);
    }
}
