//! Paths of the Open Inference Protocol, below `/v2`.

use std::borrow::Cow;

use http::Method;
use percent_encoding::percent_decode_str;

use super::super::refusals;
use crate::http::path_unknown;
use crate::mt1::{DaemonError, ModelRef};

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    ServerMetadata,
    Live,
    Ready,
    /// The statistics of all models.
    AllStatistics,
    Metadata,
    Config,
    Statistics,
    ModelReady,
    Infer,
    Index,
    Load,
    Unload,
}

/// How a request may ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Also HEAD.
    Get,
    Post,
}

impl Verb {
    pub fn allows(self, method: &Method) -> bool {
        match self {
            Self::Get => matches!(*method, Method::GET | Method::HEAD),
            Self::Post => method == Method::POST,
        }
    }

    /// Returns the methods as in the header `Allow`.
    pub fn methods(self) -> &'static str {
        match self {
            Self::Get => "GET, HEAD",
            Self::Post => "POST",
        }
    }
}

/// All paths that are answered; of those that fit, the first one counts. Any segment fits `MODEL`, and below `/v2/models`
/// `versions/N` may follow it.
const PATHS: [(Verb, &str, Asked); 12] = [
    (Verb::Get, "/v2", Asked::ServerMetadata),
    (Verb::Get, "/v2/health/live", Asked::Live),
    (Verb::Get, "/v2/health/ready", Asked::Ready),
    (Verb::Get, "/v2/models/stats", Asked::AllStatistics),
    (Verb::Get, "/v2/models/MODEL", Asked::Metadata),
    (Verb::Get, "/v2/models/MODEL/config", Asked::Config),
    (Verb::Get, "/v2/models/MODEL/stats", Asked::Statistics),
    (Verb::Get, "/v2/models/MODEL/ready", Asked::ModelReady),
    (Verb::Post, "/v2/models/MODEL/infer", Asked::Infer),
    (Verb::Post, "/v2/repository/index", Asked::Index),
    (Verb::Post, "/v2/repository/models/MODEL/load", Asked::Load),
    (Verb::Post, "/v2/repository/models/MODEL/unload", Asked::Unload),
];

/// Returns how a path may be asked for, what for, and its model, whose name is empty where the path has none.
pub fn route(path: &str) -> Result<(Verb, Asked, ModelRef), DaemonError> {
    let Some(segments) = split(path) else {
        return Err(DaemonError::invalid("the path is not UTF-8"));
    };
    let segments: Vec<&str> = segments.iter().map(|segment| &**segment).collect();
    PATHS
        .iter()
        .find_map(|&(verb, form, asked)| Some((verb, asked, model_of(form, &segments)?)))
        .ok_or_else(|| refusal(&segments))
}

/// Returns the model that a path names, if the path fits a form of `PATHS`.
fn model_of(form: &str, mut segments: &[&str]) -> Option<ModelRef> {
    let mut model = ModelRef::latest("");
    for word in form.split('/').skip(2) {
        let (first, rest) = segments.split_first()?;
        segments = rest;
        if word != "MODEL" {
            if word != *first {
                return None;
            }
            continue;
        }
        model.name = (*first).to_owned();
        if form.starts_with("/v2/models/")
            && let ["versions", version, rest @ ..] = segments
        {
            model.version = Some((*version).to_owned());
            segments = rest;
        }
    }
    segments.is_empty().then_some(model)
}

/// Returns the error for a path that is not answered.
fn refusal(segments: &[&str]) -> DaemonError {
    let action = match segments {
        ["systemsharedmemory" | "cudasharedmemory", ..] => return refusals::shared_memory(),
        ["trace", "setting"] | ["logging"] => return refusals::trace_and_log(),
        ["models", _, "versions", _, action @ ..] | ["models", _, action @ ..] => action,
        _ => return path_unknown(),
    };
    match action {
        ["trace", "setting"] => refusals::trace_and_log(),
        [verb @ ("generate" | "generate_stream")] => {
            DaemonError::unsupported(format!("'{verb}' is not supported: models answer 'infer'"))
        }
        _ => path_unknown(),
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::documented_paths;

    #[test]
    fn every_path_is_documented_with_what_the_daemon_decides() {
        let method = |verb| if verb == Verb::Get { "GET" } else { "POST" };
        let paths: BTreeSet<_> = PATHS.iter().map(|&(verb, path, _)| format!("{} {path}", method(verb))).collect();
        assert_eq!(paths.len(), PATHS.len());
        assert_eq!(paths, documented_paths::where_first(|first| first == "v2"));
    }

    #[test]
    fn paths_lead_to_models() {
        let model = |name: &str, version: &str| ModelRef {
            name: name.to_owned(),
            version: Some(version).filter(|version| !version.is_empty()).map(str::to_owned),
            label: None,
        };
        for (path, asked, name, version) in [
            ("/v2", Asked::ServerMetadata, "", ""),
            ("/v2/", Asked::ServerMetadata, "", ""),
            ("/v2/models/stats", Asked::AllStatistics, "", ""),
            ("/v2/models/stats/stats", Asked::Statistics, "stats", ""),
            ("/v2/models/m/", Asked::Metadata, "m", ""),
            ("/v2/models/m/versions/7", Asked::Metadata, "m", "7"),
            ("/v2/models/m/versions/config", Asked::Metadata, "m", "config"),
            ("/v2/models/m/versions/7/infer", Asked::Infer, "m", "7"),
            ("/v2/models/versions/versions/versions/ready", Asked::ModelReady, "versions", "versions"),
            ("/v2/models//infer", Asked::Infer, "", ""),
            ("/v2/models/a%2Fb/config", Asked::Config, "a/b", ""),
            ("/v2/models/MODEL/config", Asked::Config, "MODEL", ""),
            ("/v2/repository/models/versions/load", Asked::Load, "versions", ""),
        ] {
            let (_, found, of) = route(path).unwrap();
            assert_eq!((found, of), (asked, model(name, version)), "{path}");
        }
    }

    #[test]
    fn other_paths_are_refused() {
        for (path, reason) in [
            ("/v2/models", "path_unknown"),
            ("/v2/Health/live", "path_unknown"),
            ("/v2/health/live/now", "path_unknown"),
            ("/v2/models/m/versions", "path_unknown"),
            ("/v2/models/m/versions/7/infer/now", "path_unknown"),
            ("/v2/repository/models/m/versions/7/load", "path_unknown"),
            ("/v2/models/m/generate/now", "path_unknown"),
            ("/v2/models/m/generate", "kind_unknown"),
            ("/v2/models/m/versions/7/generate_stream", "kind_unknown"),
            ("/v2/models/m/versions/7/trace/setting", "kind_unknown"),
            ("/v2/logging", "kind_unknown"),
            ("/v2/systemsharedmemory/status", "kind_unknown"),
            ("/v2/models/%ff", "malformed"),
        ] {
            assert_eq!(route(path).unwrap_err().reason, reason, "{path}");
        }
    }

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
