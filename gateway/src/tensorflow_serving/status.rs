//! The state of a model's versions.

use serde_json::{Value, json};

use crate::mt1::{Code, Daemon, DaemonError, ModelRef};

/// One version of a model, in the terms of TensorFlow Serving.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionStatus {
    /// 0 if it is not known yet.
    pub version: i64,
    /// `START`, `LOADING`, `AVAILABLE`, `UNLOADING` or `END`.
    pub state: &'static str,
    /// Why it could not be loaded.
    pub cause: Option<String>,
}

/// Returns the versions of a model that are or were to be served, the highest first, or the one that is asked for.
pub async fn versions(daemon: &Daemon, model: &ModelRef) -> Result<Vec<VersionStatus>, DaemonError> {
    let name = &model.name;
    match daemon.call("MT1:status", json!({"model_name": name})).await {
        Ok(status) => select(&status, model),
        Err(error) if error.reason == "model_unknown" => select(&Value::Null, model),
        Err(error) => Err(error),
    }
}

/// Returns the number of a version that has a label.
pub async fn version_of_label(daemon: &Daemon, model: &ModelRef) -> Result<Option<i64>, DaemonError> {
    Ok(versions(daemon, model).await?.first().map(|status| status.version))
}

fn select(status: &Value, model: &ModelRef) -> Result<Vec<VersionStatus>, DaemonError> {
    let name = &model.name;
    let entries = status["models"].as_array().map(Vec::as_slice).unwrap_or_default();
    let entries: Vec<_> = entries.iter().filter(|entry| entry["name"] == name.as_str()).collect();
    let not_found = |message| Err(DaemonError::new(Code::NotFound, "model_unknown", message));
    if entries.is_empty() {
        return not_found(format!("Could not find any versions of model {name}"));
    }
    let has_label = |entry: &Value, label: &str| {
        let labels = entry["labels"].as_array().map(Vec::as_slice).unwrap_or_default();
        labels.iter().any(|other| other == label)
    };
    let mut versions: Vec<_> = entries
        .into_iter()
        .filter(|entry| model.label.as_deref().is_none_or(|label| has_label(entry, label)))
        .map(version_status)
        .filter(|status| model.version.as_ref().is_none_or(|version| *version == status.version.to_string()))
        .collect();
    if versions.is_empty() {
        return match (&model.label, &model.version) {
            (Some(label), _) => Err(DaemonError::invalid(format!("Unrecognized servable version label: {label}"))),
            (None, version) => {
                let version = version.as_deref().unwrap_or_default();
                not_found(format!("Could not find version {version} of model {name}"))
            }
        };
    }
    versions.sort_by_key(|status| std::cmp::Reverse(status.version));
    Ok(versions)
}

fn version_status(entry: &Value) -> VersionStatus {
    let version = entry["version"].as_str().and_then(|version| version.parse().ok()).unwrap_or(0);
    let (state, failed) = match entry["state"].as_str().unwrap_or_default() {
        "ready" => ("AVAILABLE", false),
        "waiting" => ("START", false),
        "loading" => ("LOADING", false),
        "unloading" => ("UNLOADING", false),
        "failed" => ("END", true),
        _ => ("END", false),
    };
    let cause = failed.then(|| entry["cause"].as_str().unwrap_or("the model could not be loaded").to_owned());
    VersionStatus { version, state, cause }
}

/// Returns the body of the reply: `GetModelStatusResponse` in proto3's JSON.
pub fn body(versions: &[VersionStatus]) -> Vec<u8> {
    let versions: Vec<_> = versions
        .iter()
        .map(|status| {
            let code = if status.cause.is_some() { "UNKNOWN" } else { "OK" };
            let message = status.cause.as_deref().unwrap_or_default();
            json!({"version": status.version.to_string(), "state": status.state,
                   "status": {"error_code": code, "error_message": message}})
        })
        .collect();
    super::pretty(&json!({"model_version_status": versions}))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(version: Option<&str>, label: Option<&str>) -> ModelRef {
        ModelRef { name: "m".to_owned(), version: version.map(str::to_owned), label: label.map(str::to_owned) }
    }

    fn status() -> Value {
        json!({"models": [
            {"name": "m", "version": "2", "state": "unloading", "cause": null, "labels": []},
            {"name": "m", "version": "10", "state": "ready", "cause": "on one slot", "labels": ["stable"]},
            {"name": "m", "version": "11", "state": "failed", "cause": "no graph", "labels": []},
            {"name": "m", "version": "12", "state": "loading", "labels": []},
            {"name": "m", "version": null, "state": "waiting", "labels": []},
            {"name": "other", "version": "1", "state": "ready", "labels": ["stable", "canary"]},
        ]})
    }

    #[test]
    fn all_versions_are_listed_from_the_highest_on() {
        let versions = select(&status(), &model(None, None)).expect("versions");
        let states: Vec<_> = versions.iter().map(|status| (status.version, status.state)).collect();
        let expected = [(12, "LOADING"), (11, "END"), (10, "AVAILABLE"), (2, "UNLOADING"), (0, "START")];
        assert_eq!(states, expected);
        let body: Value = serde_json::from_slice(&body(&versions[1..3])).expect("JSON");
        assert_eq!(
            body,
            json!({"model_version_status": [
                {"version": "11", "state": "END", "status": {"error_code": "UNKNOWN", "error_message": "no graph"}},
                {"version": "10", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}},
            ]})
        );
    }

    #[test]
    fn one_version_is_found_by_its_number_or_label() {
        for wanted in [model(Some("10"), None), model(None, Some("stable"))] {
            let versions = select(&status(), &wanted).expect("a version");
            assert_eq!(versions.iter().map(|status| status.version).collect::<Vec<_>>(), [10]);
        }
    }

    #[test]
    fn what_is_not_served_is_an_error() {
        let unknown = ModelRef::latest("no");
        for (wanted, code, message) in [
            (unknown, Code::NotFound, "Could not find any versions of model no"),
            (model(Some("3"), None), Code::NotFound, "Could not find version 3 of model m"),
            (model(None, Some("canary")), Code::InvalidArgument, "Unrecognized servable version label: canary"),
        ] {
            let error = select(&status(), &wanted).expect_err(message);
            assert_eq!((error.code, error.message.as_str()), (code, message));
        }
        assert!(select(&json!(null), &model(None, None)).is_err());
    }
}
