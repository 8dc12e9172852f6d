//! SignatureDefs: what models declare, in the terms of TensorFlow.

use bytes::Bytes;
use prost::Message;

use super::signature::DEFAULT_SIGNATURE;
use crate::mt1::{DaemonError, ModelMetadata, TensorMetadata};
use crate::proto::tensorflow::serving::SignatureDefMap;
use crate::proto::tensorflow::tensor_info::Encoding;
use crate::proto::tensorflow::tensor_shape_proto::Dim;
use crate::proto::tensorflow::{DataType, SignatureDef, TensorInfo, TensorShapeProto};
use crate::tensor::Datatype;

/// Method names of signatures.
pub const PREDICT: &str = "tensorflow/serving/predict";
pub const CLASSIFY: &str = "tensorflow/serving/classify";
pub const REGRESS: &str = "tensorflow/serving/regress";

/// Returns all signatures of a model, serialized: as its SavedModel defines them, or made from what it declares.
pub fn serialized_signature_defs(metadata: &ModelMetadata) -> Bytes {
    match &metadata.signature_defs {
        Some(serialized) => serialized.clone(),
        None => made_signature_defs(metadata).encode_to_vec().into(),
    }
}

/// Returns all signatures of a model: as its SavedModel defines them, or made from what it declares.
pub fn signature_defs(metadata: &ModelMetadata) -> Result<SignatureDefMap, DaemonError> {
    match &metadata.signature_defs {
        Some(serialized) => SignatureDefMap::decode(serialized.clone())
            .map_err(|error| DaemonError::invalid(format!("the signatures of the model cannot be read: {error}"))),
        None => Ok(made_signature_defs(metadata)),
    }
}

/// Returns the name of the signature that a request means; an empty name means the default one.
pub fn resolved_name<'a>(metadata: &'a ModelMetadata, name: &'a str) -> &'a str {
    match name {
        "" => metadata.signature_name.as_deref().unwrap_or(DEFAULT_SIGNATURE),
        name => name,
    }
}

fn made_signature_defs(metadata: &ModelMetadata) -> SignatureDefMap {
    let default = signature_def(&metadata.inputs, &metadata.outputs);
    let mut map = SignatureDefMap::default();
    for (name, signature) in &metadata.signatures {
        map.signature_def.insert(name.clone(), signature_def(&signature.inputs, &signature.outputs));
    }
    map.signature_def.insert(resolved_name(metadata, "").to_owned(), default);
    map
}

fn signature_def(inputs: &[TensorMetadata], outputs: &[TensorMetadata]) -> SignatureDef {
    let infos = |tensors: &[TensorMetadata]| tensors.iter().map(|tensor| (tensor.name.clone(), info(tensor))).collect();
    SignatureDef {
        inputs: infos(inputs),
        outputs: infos(outputs),
        method_name: PREDICT.to_owned(),
        defaults: Default::default(),
    }
}

fn info(tensor: &TensorMetadata) -> TensorInfo {
    let dim = tensor.shape.iter().map(|&size| Dim { size, name: String::new() }).collect();
    TensorInfo {
        dtype: dtype(tensor.datatype).into(),
        tensor_shape: Some(TensorShapeProto { dim, unknown_rank: false }),
        // As TensorFlow names the first output of an operation.
        encoding: Some(Encoding::Name(format!("{}:0", tensor.name))),
    }
}

/// Returns TensorFlow's type of a datatype.
pub fn dtype(datatype: Datatype) -> DataType {
    match datatype {
        Datatype::Bool => DataType::DtBool,
        Datatype::Uint8 => DataType::DtUint8,
        Datatype::Uint16 => DataType::DtUint16,
        Datatype::Uint32 => DataType::DtUint32,
        Datatype::Uint64 => DataType::DtUint64,
        Datatype::Int8 => DataType::DtInt8,
        Datatype::Int16 => DataType::DtInt16,
        Datatype::Int32 => DataType::DtInt32,
        Datatype::Int64 => DataType::DtInt64,
        Datatype::Fp16 => DataType::DtHalf,
        Datatype::Fp32 => DataType::DtFloat,
        Datatype::Fp64 => DataType::DtDouble,
        Datatype::Bf16 => DataType::DtBfloat16,
        Datatype::Complex64 => DataType::DtComplex64,
        Datatype::Complex128 => DataType::DtComplex128,
        Datatype::Bytes => DataType::DtString,
    }
}

/// Returns the datatype of TensorFlow's type, or None for quantized types, resources, variants and references.
pub fn datatype(dtype: DataType) -> Option<Datatype> {
    Datatype::ALL.into_iter().find(|&datatype| self::dtype(datatype) == dtype)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mt1::SignatureMetadata;

    fn tensor(name: &str, datatype: Datatype, shape: &[i64]) -> TensorMetadata {
        TensorMetadata { name: name.to_owned(), datatype, shape: shape.to_vec(), optional: false, signature_key: None }
    }

    #[test]
    fn types_are_found_both_ways() {
        for each in Datatype::ALL {
            assert_eq!(datatype(dtype(each)), Some(each));
        }
        for none in [DataType::DtInvalid, DataType::DtQint8, DataType::DtResource, DataType::DtVariant] {
            assert_eq!(datatype(none), None);
        }
    }

    #[test]
    fn a_model_without_signature_defs_gets_them_from_what_it_declares() {
        let metadata = ModelMetadata {
            inputs: vec![tensor("x", Datatype::Fp32, &[-1, 64])],
            outputs: vec![tensor("y", Datatype::Bytes, &[-1])],
            ..Default::default()
        };
        let map = signature_defs(&metadata).unwrap().signature_def;
        assert_eq!(map.keys().collect::<Vec<_>>(), ["serving_default"]);
        let signature = &map["serving_default"];
        assert_eq!(signature.method_name, PREDICT);
        let info = &signature.inputs["x"];
        assert_eq!(info.dtype(), DataType::DtFloat);
        assert_eq!(info.encoding, Some(Encoding::Name("x:0".to_owned())));
        let sizes: Vec<_> = info.tensor_shape.iter().flat_map(|shape| &shape.dim).map(|dim| dim.size).collect();
        assert_eq!(sizes, [-1, 64]);
        assert_eq!(signature.outputs["y"].dtype(), DataType::DtString);
        assert_eq!(SignatureDefMap::decode(serialized_signature_defs(&metadata)).unwrap().signature_def, map);
    }

    #[test]
    fn what_a_saved_model_defines_is_passed_on_as_it_is() {
        // A field that this program does not know stays where it is.
        let serialized = Bytes::from_static(b"\x0a\x08\x0a\x01s\x12\x03\x1a\x01m\xa2\x06\x00");
        let metadata = ModelMetadata {
            signature_defs: Some(serialized.clone()),
            signatures: [("s".to_owned(), SignatureMetadata::default())].into(),
            signature_name: Some("s".to_owned()),
            ..Default::default()
        };
        assert_eq!(serialized_signature_defs(&metadata), serialized);
        assert_eq!(signature_defs(&metadata).unwrap().signature_def["s"].method_name, "m");
        assert_eq!(resolved_name(&metadata, ""), "s");
        assert_eq!(resolved_name(&metadata, "t"), "t");
    }
}
