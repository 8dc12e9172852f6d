//! Paths of TensorFlow Serving's REST interface, below `/v1`.

use http::Method;
use percent_encoding::percent_decode_str;

use crate::mt1::{DaemonError, ModelRef};

/// What a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    Predict(ModelRef),
    Classify(ModelRef),
    Regress(ModelRef),
    /// State of all versions, or of one.
    Status(ModelRef),
    /// Signatures.
    Metadata(ModelRef),
}

/// Returns what a request asks for. Everything but names and labels is matched without regard to case.
///
/// ```text
/// POST /v1/models/NAME[/versions/N | /labels/LABEL]:(predict | classify | regress)
/// GET  /v1/models/NAME[/versions/N | /labels/LABEL][/metadata]
/// ```
pub fn route(method: &Method, path: &str) -> Result<Route, DaemonError> {
    let route = match *method {
        Method::POST => inference(path)?,
        Method::GET => information(path)?,
        _ => None,
    };
    route.ok_or_else(|| DaemonError::invalid(format!("Malformed request: {method} {path}")))
}

fn inference(path: &str) -> Result<Option<Route>, DaemonError> {
    // Neither names nor labels contain colons, unless encoded.
    let Some((path, verb)) = path.rsplit_once(':') else { return Ok(None) };
    let Some(segments) = below_models(path).filter(|segments| !segments.is_empty()) else { return Ok(None) };
    let make = match verb.to_ascii_lowercase().as_str() {
        "predict" => Route::Predict,
        "classify" => Route::Classify,
        "regress" => Route::Regress,
        _ => return Ok(None),
    };
    Ok(model(&segments)?.map(make))
}

fn information(path: &str) -> Result<Option<Route>, DaemonError> {
    let Some(mut segments) = below_models(path) else { return Ok(None) };
    // A first segment is the name of a model, even if it is `metadata` or `versions`.
    let metadata = segments.len() > 1 && segments.last().is_some_and(|last| last.eq_ignore_ascii_case("metadata"));
    if metadata {
        segments.pop();
    }
    if segments.is_empty() {
        return Err(DaemonError::invalid("Missing model name in request."));
    }
    Ok(model(&segments)?.map(if metadata { Route::Metadata } else { Route::Status }))
}

/// The segments below `/v1/models`, or `None` for another path or if one of them is empty or has a colon.
fn below_models(path: &str) -> Option<Vec<&str>> {
    let mut segments = path.strip_prefix('/')?.split('/');
    if !segments.next()?.eq_ignore_ascii_case("v1") || !segments.next()?.eq_ignore_ascii_case("models") {
        return None;
    }
    let segments: Vec<_> = segments.collect();
    segments.iter().all(|segment| !segment.is_empty() && !segment.contains(':')).then_some(segments)
}

fn model(segments: &[&str]) -> Result<Option<ModelRef>, DaemonError> {
    let (name, version, label) = match segments {
        [name] => (name, None, None),
        [name, kind, digits]
            if kind.eq_ignore_ascii_case("versions") && digits.bytes().all(|byte| byte.is_ascii_digit()) =>
        {
            let version: i64 = digits
                .parse()
                .map_err(|_| DaemonError::invalid(format!("Failed to convert version: {digits} to numeric.")))?;
            (name, Some(version.to_string()), None)
        }
        [name, kind, label] if kind.eq_ignore_ascii_case("labels") => {
            (name, None, Some(decode(label, "model version label")?))
        }
        _ => return Ok(None),
    };
    Ok(Some(ModelRef { name: decode(name, "model name")?, version, label }))
}

fn decode(segment: &str, what: &str) -> Result<String, DaemonError> {
    let decoded = percent_decode_str(segment).decode_utf8();
    decoded
        .map(String::from)
        .map_err(|_| DaemonError::invalid(format!("Failed to decode {what}: {segment} is not UTF-8 once decoded")))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::documented_paths;

    /// The documented path of a route. A new kind of route does not compile until it has one here.
    fn documented(route: &Route) -> &'static str {
        match route {
            Route::Predict(_) => "POST /v1/models/MODEL:predict",
            Route::Classify(_) => "POST /v1/models/MODEL:classify",
            Route::Regress(_) => "POST /v1/models/MODEL:regress",
            Route::Status(_) => "GET /v1/models/MODEL",
            Route::Metadata(_) => "GET /v1/models/MODEL/metadata",
        }
    }

    #[test]
    fn every_route_is_documented_with_what_the_daemon_decides() {
        let model = || ModelRef::latest("MODEL");
        let routes = [
            Route::Predict(model()),
            Route::Classify(model()),
            Route::Regress(model()),
            Route::Status(model()),
            Route::Metadata(model()),
        ];
        for expected in &routes {
            let (method, path) = documented(expected).split_once(' ').unwrap();
            assert_eq!(route(&method.parse().unwrap(), path).as_ref(), Ok(expected));
        }
        let paths: BTreeSet<_> = routes.iter().map(|route| documented(route).to_owned()).collect();
        assert_eq!(paths, documented_paths::where_first(|first| first == "v1"));
    }

    fn model(name: &str, version: Option<&str>, label: Option<&str>) -> ModelRef {
        ModelRef { name: name.to_owned(), version: version.map(str::to_owned), label: label.map(str::to_owned) }
    }

    #[test]
    fn paths_lead_to_models() {
        for (method, path, expected) in [
            (Method::POST, "/v1/models/m:predict", Route::Predict(model("m", None, None))),
            (Method::POST, "/V1/Models/Mixed.Case_1:PREDICT", Route::Predict(model("Mixed.Case_1", None, None))),
            (Method::POST, "/v1/models/m:classify", Route::Classify(model("m", None, None))),
            (Method::POST, "/v1/models/m/versions/7:regress", Route::Regress(model("m", Some("7"), None))),
            (Method::POST, "/v1/models/m/VERSIONS/007:predict", Route::Predict(model("m", Some("7"), None))),
            (Method::POST, "/v1/models/m/labels/stable:predict", Route::Predict(model("m", None, Some("stable")))),
            (Method::POST, "/v1/models/a%2Fb%3a:predict", Route::Predict(model("a/b:", None, None))),
            (Method::POST, "/v1/models/m/labels/a%20b:predict", Route::Predict(model("m", None, Some("a b")))),
            (Method::POST, "/v1/models/versions:predict", Route::Predict(model("versions", None, None))),
            (Method::GET, "/v1/models/m", Route::Status(model("m", None, None))),
            (Method::GET, "/v1/models/m/versions/9223372036854775807", {
                Route::Status(model("m", Some("9223372036854775807"), None))
            }),
            (Method::GET, "/v1/models/m/labels/canary", Route::Status(model("m", None, Some("canary")))),
            (Method::GET, "/v1/models/m/metadata", Route::Metadata(model("m", None, None))),
            (Method::GET, "/v1/models/m/versions/3/METADATA", Route::Metadata(model("m", Some("3"), None))),
            (Method::GET, "/v1/models/m/labels/metadata/metadata", Route::Metadata(model("m", None, Some("metadata")))),
            (Method::GET, "/v1/models/metadata", Route::Status(model("metadata", None, None))),
        ] {
            assert_eq!(route(&method, path), Ok(expected), "{method} {path}");
        }
    }

    #[test]
    fn other_paths_are_refused_with_the_reason() {
        for (method, path, message) in [
            (Method::GET, "/v1", "Malformed request: GET /v1"),
            (Method::GET, "/v1/foo", "Malformed request: GET /v1/foo"),
            (Method::POST, "/v1/models", "Malformed request: POST /v1/models"),
            (Method::GET, "/v1/models", "Missing model name in request."),
            (Method::GET, "/v1/models/", "Malformed request: GET /v1/models/"),
            (Method::GET, "/v1/models/m:predict", "Malformed request: GET /v1/models/m:predict"),
            (Method::POST, "/v1/models/m", "Malformed request: POST /v1/models/m"),
            (Method::POST, "/v1/models/:predict", "Malformed request: POST /v1/models/:predict"),
            (Method::POST, "/v1/models/m:explain", "Malformed request: POST /v1/models/m:explain"),
            (Method::POST, "/v1/models/m/version/5:predict", "Malformed request"),
            (Method::POST, "/v1/models/m/versions/HELLO:predict", "Malformed request"),
            (Method::POST, "/v1/models/m/versions/-1:predict", "Malformed request"),
            (Method::POST, "/v1/models/m/versions/1/labels/a:predict", "Malformed request"),
            (Method::POST, "/v1/models/m/versions/1/metadata:predict", "Malformed request"),
            (Method::POST, "/v1/models/m/versions/9223372036854775808:predict", {
                "Failed to convert version: 9223372036854775808 to numeric."
            }),
            (Method::PUT, "/v1/models/m:predict", "Malformed request: PUT"),
            (Method::POST, "/v1/models/%ff:predict", "Failed to decode model name"),
        ] {
            let error = route(&method, path).expect_err(path);
            assert!(error.message.starts_with(message), "{method} {path}: {}", error.message);
        }
    }

    proptest! {
        #[test]
        fn any_path_is_matched_or_refused(path in "/v1(/models)?[/a:%0-9versionslabelsmetadata]{0,40}(:predict)?") {
            for method in [Method::GET, Method::POST] {
                let _ = route(&method, &path);
            }
        }
    }
}
