//! What models declare: the reply to `MT1:model_metadata`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::Value;

use super::{Cache, Daemon, DaemonError, Handle, ModelRef};
use crate::tensor::Datatype;

/// A model's versions, inputs and outputs. The lists are empty for a handler without declarations.
#[derive(Clone, Debug, Default)]
pub struct ModelMetadata {
    /// All served versions, ascending.
    pub versions: Vec<String>,
    /// Of the default signature.
    pub inputs: Vec<TensorMetadata>,
    pub outputs: Vec<TensorMetadata>,
    /// The name of the default signature, for a SavedModel.
    pub signature_name: Option<String>,
    pub signatures: BTreeMap<String, SignatureMetadata>,
    /// The serialized `SignatureDefMap` of a SavedModel.
    pub signature_defs: Option<Bytes>,
}

/// One signature of a SavedModel.
#[derive(Clone, Debug, Default)]
pub struct SignatureMetadata {
    pub inputs: Vec<TensorMetadata>,
    pub outputs: Vec<TensorMetadata>,
    /// Why it cannot be served, or None.
    pub cause: Option<String>,
}

/// An input or output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorMetadata {
    pub name: String,
    pub datatype: Datatype,
    /// -1 for a dimension of any size.
    pub shape: Vec<i64>,
    /// Whether requests may leave this input out.
    pub optional: bool,
    /// Its key in the SignatureDef, if that differs from the name that requests to the daemon have.
    pub signature_key: Option<String>,
}

/// Metadata up to this age is used.
const MAX_AGE: Duration = Duration::from_secs(1);

/// From this age on, metadata is asked for again beside the request that uses it.
const REFRESH_AGE: Duration = Duration::from_millis(500);

const CACHED_MODELS: usize = 1024;

#[derive(Clone)]
struct Entry {
    read_at: Instant,
    metadata: Arc<ModelMetadata>,
    refreshing: bool,
}

/// The metadata that was asked for lately. Where the daemon has `security`, each handle has its own: others may not see it.
pub struct MetadataCache {
    entries: Cache<ModelRef, Entry>,
    by_handle: Cache<(Handle, ModelRef), Entry>,
}

impl Default for MetadataCache {
    fn default() -> Self {
        Self { entries: Cache::new(CACHED_MODELS), by_handle: Cache::new(CACHED_MODELS) }
    }
}

impl MetadataCache {
    /// Returns metadata that is at most `MAX_AGE` old.
    pub async fn get(&self, daemon: &Daemon, model: &ModelRef) -> Result<Arc<ModelMetadata>, DaemonError> {
        let handle = daemon.handle();
        if let Some(mut entry) = self.known(handle, model) {
            let age = entry.read_at.elapsed();
            if age >= REFRESH_AGE && age < MAX_AGE && !entry.refreshing {
                entry.refreshing = true;
                self.insert(handle, model, entry.clone());
                let (daemon, model) = (daemon.clone(), model.clone());
                tokio::spawn(async move { daemon.inner.metadata.read(&daemon, &model).await.ok() });
            }
            if age < MAX_AGE {
                return Ok(entry.metadata);
            }
        }
        self.read(daemon, model).await
    }

    fn known(&self, handle: Handle, model: &ModelRef) -> Option<Entry> {
        if handle.is_none() { self.entries.get(model) } else { self.by_handle.get(&(handle, model.clone())) }
    }

    fn insert(&self, handle: Handle, model: &ModelRef, entry: Entry) {
        if handle.is_none() {
            self.entries.insert(model.clone(), entry);
        } else {
            self.by_handle.insert((handle, model.clone()), entry);
        }
    }

    async fn read(&self, daemon: &Daemon, model: &ModelRef) -> Result<Arc<ModelMetadata>, DaemonError> {
        let (read_at, handle) = (Instant::now(), daemon.handle());
        let reply = daemon.call("MT1:model_metadata", model.to_header()).await?;
        let metadata = Arc::new(ModelMetadata::from_json(&reply));
        let entry = Entry { read_at, metadata: metadata.clone(), refreshing: false };
        // If another handle has taken its place meanwhile, who knows which of them the answer was for.
        if daemon.handle() == handle {
            self.insert(handle, model, entry);
        }
        Ok(metadata)
    }
}

impl ModelMetadata {
    fn from_json(reply: &Value) -> Self {
        let strings = |value: &Value| {
            let list = value.as_array().map(Vec::as_slice).unwrap_or_default();
            list.iter().filter_map(Value::as_str).map(str::to_owned).collect()
        };
        let signatures = reply["signatures"].as_object().into_iter().flatten().map(|(name, signature)| {
            let metadata = SignatureMetadata {
                inputs: TensorMetadata::list_from_json(&signature["inputs"]),
                outputs: TensorMetadata::list_from_json(&signature["outputs"]),
                cause: signature["cause"].as_str().map(str::to_owned),
            };
            (name.clone(), metadata)
        });
        let signature_defs = reply["signature_defs"].as_str().and_then(|text| STANDARD.decode(text).ok());
        Self {
            versions: strings(&reply["versions"]),
            inputs: TensorMetadata::list_from_json(&reply["inputs"]),
            outputs: TensorMetadata::list_from_json(&reply["outputs"]),
            signature_name: reply["signature_name"].as_str().map(str::to_owned),
            signatures: signatures.collect(),
            signature_defs: signature_defs.map(Bytes::from),
        }
    }
}

impl TensorMetadata {
    /// The name of an input that clients of TensorFlow Serving use.
    pub fn key(&self) -> &str {
        self.signature_key.as_deref().unwrap_or(&self.name)
    }

    fn list_from_json(list: &Value) -> Vec<Self> {
        let list = list.as_array().map(Vec::as_slice).unwrap_or_default();
        list.iter().filter_map(Self::from_json).collect()
    }

    fn from_json(tensor: &Value) -> Option<Self> {
        let shape = tensor["shape"].as_array()?;
        Some(Self {
            name: tensor["name"].as_str()?.to_owned(),
            datatype: Datatype::from_name(tensor["datatype"].as_str()?)?,
            shape: shape.iter().map(|dimension| dimension.as_i64().unwrap_or(-1)).collect(),
            optional: tensor["optional"].as_bool().unwrap_or(false),
            signature_key: tensor["signature_key"].as_str().map(str::to_owned),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn metadata_is_read() {
        let tensor = json!({"name": "x", "datatype": "FP32", "shape": [-1, 64], "signature_key": "x-1"});
        let optional = json!({"name": "k", "datatype": "INT32", "shape": [], "optional": true});
        let reply = json!({"name": "m", "versions": ["1", "3"], "platform": "p", "inputs": [tensor, optional],
                           "outputs": [tensor], "signature_name": "serving_default", "signature_defs": "CgA=",
                           "signatures": {"s": {"inputs": [], "outputs": [tensor], "cause": "c"}}});
        let metadata = ModelMetadata::from_json(&reply);
        assert_eq!(metadata.versions, ["1", "3"]);
        assert_eq!(metadata.inputs[0].shape, [-1, 64]);
        assert!(metadata.inputs[1].optional && !metadata.inputs[0].optional);
        assert_eq!([metadata.inputs[0].key(), metadata.inputs[1].key()], ["x-1", "k"]);
        assert_eq!(metadata.signatures["s"].cause.as_deref(), Some("c"));
        assert_eq!(metadata.signature_defs.as_deref(), Some(&b"\n\0"[..]));
        assert_eq!(ModelMetadata::from_json(&json!([])).versions, Vec::<String>::new());
    }
}
