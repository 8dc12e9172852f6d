//! Errors in the words of TensorFlow Serving.

use http::StatusCode;

use crate::http::{Response, error_response as respond};
use crate::mt1::{Code, DaemonError, ModelRef};

/// Says an error of the daemon as TensorFlow Serving does, as far as its clients look for that.
pub fn translate(mut error: DaemonError, model: &ModelRef) -> DaemonError {
    match (error.reason.as_str(), &model.label) {
        ("version_unknown", Some(label)) => {
            error.code = Code::InvalidArgument;
            error.message = format!("Unrecognized servable version label: {label}");
        }
        ("model_unknown" | "version_unknown", _) => {
            let name = &model.name;
            let which = match &model.version {
                Some(version) => format!("Specific({name}, {version})"),
                None => format!("Latest({name})"),
            };
            error.message = format!("Servable not found for request: {which}");
        }
        ("signature_unknown", _) => error.code = Code::InvalidArgument,
        _ => {}
    }
    error
}

/// Returns the response to a request that failed.
pub fn error_response(error: &DaemonError) -> Response {
    respond(error, StatusCode::TOO_MANY_REQUESTS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(version: Option<&str>, label: Option<&str>) -> ModelRef {
        ModelRef { name: "m".to_owned(), version: version.map(str::to_owned), label: label.map(str::to_owned) }
    }

    #[test]
    fn errors_have_the_words_that_clients_look_for() {
        let not_found = |reason| DaemonError::new(Code::NotFound, reason, "of the daemon");
        for (reason, model, code, message) in [
            ("model_unknown", model(None, None), Code::NotFound, "Servable not found for request: Latest(m)"),
            ("model_unknown", model(Some("3"), None), Code::NotFound, "Servable not found for request: Specific(m, 3)"),
            ("version_unknown", model(Some("3"), None), Code::NotFound, {
                "Servable not found for request: Specific(m, 3)"
            }),
            ("version_unknown", model(None, Some("l")), Code::InvalidArgument, {
                "Unrecognized servable version label: l"
            }),
            ("signature_unknown", model(None, None), Code::InvalidArgument, "of the daemon"),
        ] {
            let error = translate(not_found(reason), &model);
            assert_eq!((error.code, error.message.as_str()), (code, message), "{reason}");
        }
    }

    #[test]
    fn a_full_queue_is_429_as_in_tensorflow_serving() {
        assert_eq!(error_response(&DaemonError::queue_full("m")).status(), 429);
        assert_eq!(error_response(&DaemonError::too_large("body", 1)).status(), 413);
    }
}
