//! Requests and replies of inference.

use std::time::Duration;

use serde_json::{Value, json};

use crate::tensor::Tensor;

/// The inputs that a request may have, and the outputs that it may ask for.
pub const MAX_TENSORS: usize = 8192;

/// The dimensions that a tensor may have.
pub const MAX_DIMENSIONS: usize = 64;

/// A model, and optionally one of its versions, by number or by label but not both.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ModelRef {
    pub name: String,
    pub version: Option<String>,
    pub label: Option<String>,
}

impl ModelRef {
    /// The version that the daemon chooses.
    pub fn latest(name: impl Into<String>) -> Self {
        Self { name: name.into(), version: None, label: None }
    }

    /// The header of a query about the model.
    pub fn to_header(&self) -> Value {
        let mut header = json!({"model_name": self.name});
        if let Some(version) = &self.version {
            header["model_version"] = json!(version);
        }
        if let Some(label) = &self.label {
            header["parameters"] = json!({"version_label": label});
        }
        header
    }
}

/// A request to run a model.
#[derive(Clone, Debug)]
pub struct InferRequest {
    pub model: ModelRef,
    pub inputs: Vec<Tensor>,
    /// The wanted outputs; empty: all, in the model's order.
    pub outputs: Vec<String>,
    /// The signature to run; None: the default one.
    pub signature_name: Option<String>,
    /// 1 is the most urgent; None or 0 counts as 2.
    pub priority: Option<u64>,
    /// Time from now; None: the gateway's `request_timeout_s`.
    pub timeout: Option<Duration>,
}

impl InferRequest {
    /// Returns the bytes of all inputs.
    pub fn bytes(&self) -> usize {
        self.inputs.iter().map(|input| input.data.len()).sum()
    }
}

/// The outputs of a request, with the version that computed them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InferReply {
    pub model_name: String,
    pub model_version: String,
    pub outputs: Vec<Tensor>,
}
