//! The Open Inference Protocol (KServe v2) with Triton's extensions: [`http`], [`grpc`], and what both use.

pub mod grpc;
pub mod http;
mod refusals;
pub mod repository;

pub use http::Endpoints;
