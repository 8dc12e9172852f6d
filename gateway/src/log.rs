//! Log lines on standard error and records on standard output, one JSON object a line, for the daemon.

use std::io::Write;

use serde_json::{Map, Value, json};

/// Writes an informational line, such as `info("listening", json!({"address": "127.0.0.1:8000"}))`.
pub fn info(event: &str, fields: Value) {
    line("info", event, fields);
}

/// Writes a warning.
pub fn warning(event: &str, fields: Value) {
    line("warning", event, fields);
}

/// Writes an error.
pub fn error(event: &str, fields: Value) {
    line("error", event, fields);
}

fn line(level: &str, event: &str, fields: Value) {
    let fields = if fields.is_object() { fields } else { Value::Object(Map::new()) };
    let text = format!("{}\n", json!({"level": level, "event": event, "fields": fields}));
    // One write a line, so that lines of threads do not mix. There is nobody to tell if the daemon does not read.
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
}

/// Writes a record for the daemon. Returns false if the daemon no longer reads.
pub fn record(record: &Value) -> bool {
    let mut output = std::io::stdout().lock();
    output.write_all(format!("{record}\n").as_bytes()).and_then(|()| output.flush()).is_ok()
}
