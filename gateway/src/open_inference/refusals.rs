//! What requests are refused for over HTTP and over gRPC alike: limits, values, and extensions that do not exist here.

use serde_json::Value;

use crate::mt1::{Code, DaemonError, MAX_TENSORS};

/// Extensions of the daemon that clients of the gateway do not have.
const HIDDEN_EXTENSIONS: [&str; 1] = ["shared_memory"];

/// What the gateway has beside what the daemon lists in its metadata.
const EXTENSIONS: [&str; 2] = ["model_repository", "model_repository(unload_dependents)"];

/// Returns the extensions that clients may use, from the daemon's metadata.
pub fn extensions(metadata: &Value) -> impl Iterator<Item = &str> {
    let known = metadata["extensions"].as_array().map(Vec::as_slice).unwrap_or_default();
    known.iter().filter_map(Value::as_str).filter(|name| !HIDDEN_EXTENSIONS.contains(name)).chain(EXTENSIONS)
}

/// Refuses the next input or output of a request that has `count` of them (`what`: "inputs").
pub fn check_count(count: usize, what: &str) -> Result<(), DaemonError> {
    if count < MAX_TENSORS {
        return Ok(());
    }
    Err(DaemonError::invalid(format!("the request has more than {MAX_TENSORS} {what}")))
}

/// The error for a value that is something else than `expected`, such as "a string".
pub fn wrong(place: &str, expected: &str) -> DaemonError {
    DaemonError::invalid(format!("{place} is not {expected}"))
}

/// The error for a value that must be an integer, as in MT1.
pub fn not_an_integer(place: &str) -> DaemonError {
    let mut error = wrong(place, "an integer from 0 to 9223372036854775807");
    error.field = Some(place.to_owned());
    error
}

/// The error for an input whose datatype does not exist.
pub fn unknown_datatype(input: &str, written: &str) -> DaemonError {
    let written: String = written.chars().take(32).collect();
    let message = format!("{input} has the unknown datatype {written:?}");
    DaemonError::new(Code::InvalidArgument, "datatype_mismatch", message)
}

/// The error for parameters of sequences.
pub fn sequences() -> DaemonError {
    DaemonError::unsupported(
        "sequences ('sequence_id', 'sequence_start', 'sequence_end') are not supported: \
         models keep no state between requests",
    )
}

/// The error for outputs that are asked for as classes.
pub fn classification() -> DaemonError {
    DaemonError::unsupported("outputs as classes ('classification') are not supported")
}

/// The error for everything that concerns shared memory of clients.
pub fn shared_memory() -> DaemonError {
    DaemonError::unsupported("shared memory of clients is not supported: send the tensors in the request")
}

/// The error for the settings of trace and log.
pub fn trace_and_log() -> DaemonError {
    DaemonError::unsupported(
        "trace and log settings are not supported: the daemon's configuration has those of the log, \
         and there are no traces",
    )
}

/// Refuses a parameter of `load` or `unload`: models are loaded as they are configured.
pub fn check_load_parameter(name: &str) -> Result<(), DaemonError> {
    match name {
        // Without a meaning here, since no model depends on another one.
        "unload_dependents" => Ok(()),
        _ => Err(DaemonError::unsupported(format!(
            "parameter '{name}' is not supported: models are loaded as the daemon's configuration describes them"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn extensions_are_those_that_the_gateway_has() {
        let metadata = json!({"extensions": ["statistics", "shared_memory"]});
        let listed: Vec<_> = extensions(&metadata).collect();
        assert_eq!(listed, ["statistics", "model_repository", "model_repository(unload_dependents)"]);
    }

    #[test]
    fn what_does_not_exist_here_is_unimplemented() {
        let parameter = check_load_parameter("config").unwrap_err();
        assert!(parameter.message.contains("'config'"));
        for error in [sequences(), classification(), shared_memory(), trace_and_log(), parameter] {
            assert_eq!(error.code, Code::Unimplemented, "{}", error.message);
        }
        assert_eq!(check_load_parameter("unload_dependents"), Ok(()));
    }

    #[test]
    fn counts_are_limited_as_in_mt1() {
        assert_eq!(check_count(MAX_TENSORS - 1, "inputs"), Ok(()));
        assert_eq!(check_count(MAX_TENSORS, "inputs").unwrap_err().message, "the request has more than 8192 inputs");
    }
}
