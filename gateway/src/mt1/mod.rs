//! The client of the daemon: inference, queries and orders over MT1.

mod cache;
mod client;
mod connection;
mod error;
mod handle;
mod header;
mod identity;
mod large;
mod messages;
mod models;
mod outgoing;
mod pending;
mod regions;
mod socket;
#[cfg(test)]
pub mod stand_in;
mod timeout;
mod waiting;
mod zmtp;

pub use cache::Cache;
pub use client::Daemon;
pub use error::{Code, DaemonError};
pub use handle::Handle;
pub use header::{Area, InputHeader, OutputHeader, ReplyHeader, RequestHeader, put_shape};
pub use identity::{Credential, Identities, Identity, MAX_ASKING_OF_CONNECTION, Origin};
pub use large::{LARGE_BYTES, Layout, large_outputs};
pub use messages::{InferReply, InferRequest, MAX_DIMENSIONS, MAX_TENSORS, ModelRef};
#[cfg(test)]
pub use models::SignatureMetadata;
pub use models::{ModelMetadata, TensorMetadata};
use pending::INFER;
pub use pending::{Message, RawReply};
use regions::ALIGNMENT;
pub use regions::{FIRST_AREA, Lease, MAX_REGIONS, Regions};
pub use timeout::microseconds;
