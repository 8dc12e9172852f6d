//! TensorFlow Serving's interfaces: [`rest`] (HTTP), [`grpc`], and what both use.

mod classify;
mod errors;
pub mod grpc;
mod metadata;
pub mod rest;
mod signature;
pub mod status;

/// JSON for people to read, as TensorFlow Serving writes descriptions of models.
fn pretty(value: &serde_json::Value) -> Vec<u8> {
    format!("{value:#}\n").into_bytes()
}
