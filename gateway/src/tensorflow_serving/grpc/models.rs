//! `ModelService`: the state of models, and changes of what is loaded.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::context::Context;
use crate::mt1::{Code, DaemonError};
use crate::open_inference::repository;
use crate::proto::tensorflow::error::Code as StatusCode;
use crate::proto::tensorflow::serving as messages;
use crate::proto::tensorflow::serving::model_server_config::Config;
use crate::proto::tensorflow::serving::model_version_status::State;
use crate::tensorflow_serving::status::VersionStatus;

/// Returns the states of versions as TensorFlow Serving reports them.
pub fn model_status(versions: Vec<VersionStatus>) -> messages::GetModelStatusResponse {
    let statuses = versions.into_iter().map(|version| messages::ModelVersionStatus {
        version: version.version,
        state: State::from_str_name(version.state).unwrap_or(State::Unknown).into(),
        status: Some(match version.cause {
            None => messages::StatusProto::default(),
            Some(cause) => messages::StatusProto { error_code: StatusCode::Unknown.into(), error_message: cause },
        }),
    });
    messages::GetModelStatusResponse { model_version_status: statuses.collect() }
}

/// Loads and unloads models, so that those of the request are served and no others.
///
/// The daemon serves models as its configuration describes them. So a request may name configured models only; what
/// else it states must be so already, or it is refused as a whole and nothing changes.
pub async fn reload(
    context: &Context,
    request: messages::ReloadConfigRequest,
) -> Result<messages::ReloadConfigResponse, DaemonError> {
    repository::check_allowed(context)?;
    // Whether the client may is asked first: there may be nothing to order, and an error tells about the configuration.
    context.daemon.operate("MT1:reload", json!({"dry_run": true})).await?;
    let status = context.daemon.call("MT1:status", json!({})).await?;
    let orders = orders(&request, &configured(&status))?;
    for (kind, model) in orders {
        context.daemon.operate(kind, json!({"model_name": model})).await?;
    }
    Ok(messages::ReloadConfigResponse { status: Some(messages::StatusProto::default()), metric: Vec::new() })
}

/// A configured model as its status shows it.
#[derive(Debug, Default)]
struct Configured {
    /// Whether any version is served, or is to be.
    loaded: bool,
    labels: BTreeMap<String, i64>,
}

fn configured(status: &Value) -> BTreeMap<String, Configured> {
    let mut models = BTreeMap::<String, Configured>::new();
    for entry in status["models"].as_array().into_iter().flatten() {
        let Some(name) = entry["name"].as_str() else { continue };
        let model = models.entry(name.to_owned()).or_default();
        model.loaded |= !matches!(entry["state"].as_str(), Some("unloaded" | "unloading"));
        let version = entry["version"].as_str().and_then(|version| version.parse().ok());
        for label in entry["labels"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            model.labels.insert(label.to_owned(), version.unwrap_or(0));
        }
        for (label, version) in entry["labels_not_served"].as_object().into_iter().flatten() {
            let version = version.as_str().and_then(|text| text.parse().ok()).or_else(|| version.as_i64());
            model.labels.insert(label.clone(), version.unwrap_or(0));
        }
    }
    models
}

/// Returns what must be ordered, loading first.
fn orders(
    request: &messages::ReloadConfigRequest,
    configured: &BTreeMap<String, Configured>,
) -> Result<Vec<(&'static str, String)>, DaemonError> {
    let list = match request.config.as_ref().and_then(|config| config.config.as_ref()) {
        Some(Config::ModelConfigList(list)) => &list.config,
        Some(Config::CustomModelConfig(_)) => {
            return Err(DaemonError::unsupported("custom_model_config is not supported; use model_config_list"));
        }
        None => return Err(DaemonError::invalid("the request has no model_config_list")),
    };
    let mut orders = Vec::new();
    for model in list {
        let name = &model.name;
        let Some(known) = configured.get(name) else {
            return Err(not_possible(format!("the daemon's configuration has no model {name}")));
        };
        if model.model_version_policy.is_some() {
            return Err(not_possible(format!("which versions of {name} are served is part of the configuration")));
        }
        if !model.version_labels.is_empty() && model.version_labels != known.labels {
            return Err(not_possible(format!("the labels of {name} are part of the configuration")));
        }
        if !known.loaded {
            orders.push(("MT1:load", name.clone()));
        }
    }
    let wanted = |name: &str| list.iter().any(|model| model.name == name);
    let others = configured.iter().filter(|(name, model)| model.loaded && !wanted(name));
    orders.extend(others.map(|(name, _)| ("MT1:unload", name.clone())));
    Ok(orders)
}

fn not_possible(what: String) -> DaemonError {
    let message = format!("{what}; nothing has changed. Change the configuration file and run `multitower reload`");
    DaemonError::new(Code::FailedPrecondition, "config_refused", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> Value {
        json!({"models": [
            {"name": "a", "version": "1", "state": "ready", "labels": ["stable"]},
            {"name": "a", "version": "2", "state": "ready", "labels": [], "labels_not_served": {"old": "7"}},
            {"name": "b", "version": null, "state": "unloaded", "labels": []}]})
    }

    fn model(name: &str) -> messages::ModelConfig {
        messages::ModelConfig { name: name.to_owned(), base_path: "/m".to_owned(), ..Default::default() }
    }

    fn request(config: Vec<messages::ModelConfig>) -> messages::ReloadConfigRequest {
        let config = Some(Config::ModelConfigList(messages::ModelConfigList { config }));
        messages::ReloadConfigRequest { config: Some(messages::ModelServerConfig { config }), ..Default::default() }
    }

    #[test]
    fn models_are_loaded_and_unloaded_until_they_are_those_of_the_request() {
        let configured = configured(&status());
        let labels = [("stable".to_owned(), 1), ("old".to_owned(), 7)].into();
        for (models, expected) in [
            (vec![model("a")], vec![]),
            (vec![messages::ModelConfig { version_labels: labels, ..model("a") }], vec![]),
            (vec![model("a"), model("b")], vec![("MT1:load", "b")]),
            (vec![model("b")], vec![("MT1:load", "b"), ("MT1:unload", "a")]),
            (vec![], vec![("MT1:unload", "a")]),
        ] {
            let orders = orders(&request(models), &configured).unwrap();
            let orders: Vec<_> = orders.iter().map(|(kind, model)| (*kind, model.as_str())).collect();
            assert_eq!(orders, expected);
        }
    }

    #[test]
    fn what_only_the_configuration_can_change_is_refused() {
        let configured = configured(&status());
        let policy = Some(messages::file_system_storage_path_source_config::ServableVersionPolicy::default());
        for (request, part) in [
            (request(vec![model("c")]), "no model c; nothing has changed"),
            (
                request(vec![messages::ModelConfig { model_version_policy: policy, ..model("a") }]),
                "which versions of a",
            ),
            (
                request(vec![messages::ModelConfig { version_labels: [("x".to_owned(), 1)].into(), ..model("a") }]),
                "the labels of a",
            ),
            (messages::ReloadConfigRequest::default(), "no model_config_list"),
        ] {
            let error = orders(&request, &configured).unwrap_err();
            assert!(error.message.contains(part), "{}", error.message);
        }
    }

    #[test]
    fn states_are_those_of_tensorflow_serving() {
        let versions = vec![
            VersionStatus { version: 2, state: "AVAILABLE", cause: None },
            VersionStatus { version: 1, state: "END", cause: Some("no graph".to_owned()) },
        ];
        let reply = model_status(versions);
        assert_eq!(reply.model_version_status[0].state(), State::Available);
        assert_eq!(reply.model_version_status[0].status, Some(messages::StatusProto::default()));
        assert_eq!(reply.model_version_status[1].state(), State::End);
        let status = reply.model_version_status[1].status.clone().unwrap();
        assert_eq!((status.error_code(), status.error_message.as_str()), (StatusCode::Unknown, "no graph"));
    }
}
