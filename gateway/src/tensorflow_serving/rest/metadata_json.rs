//! The signatures of a model in proto3's JSON.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use crate::mt1::ModelRef;
use crate::proto::tensorflow::serving::SignatureDefMap;
use crate::proto::tensorflow::tensor_info::Encoding;
use crate::proto::tensorflow::{DataType, SignatureDef, TensorInfo, TensorProto, TensorShapeProto};

/// Returns the body of the reply: `GetModelMetadataResponse` as TensorFlow Serving writes it, with a `SignatureDefMap`
/// in place of an `Any`.
pub fn body(model: &ModelRef, version: i64, map: &SignatureDefMap) -> Vec<u8> {
    let signatures: Map<_, _> =
        map.signature_def.iter().map(|(name, signature)| (name.clone(), signature_json(signature))).collect();
    crate::tensorflow_serving::pretty(&json!({
        "model_spec": {"name": model.name, "signature_name": "", "version": version.to_string()},
        "metadata": {"signature_def": {"signature_def": signatures}},
    }))
}

fn signature_json(signature: &SignatureDef) -> Value {
    let infos = |map: &std::collections::BTreeMap<String, TensorInfo>| {
        map.iter().map(|(name, info)| (name.clone(), info_json(info))).collect::<Map<_, _>>()
    };
    let defaults: Map<_, _> =
        signature.defaults.iter().map(|(name, tensor)| (name.clone(), tensor_json(tensor))).collect();
    json!({
        "inputs": infos(&signature.inputs),
        "outputs": infos(&signature.outputs),
        "method_name": signature.method_name,
        "defaults": defaults,
    })
}

fn info_json(info: &TensorInfo) -> Value {
    let mut json = json!({"dtype": type_json(info.dtype)});
    if let Some(shape) = &info.tensor_shape {
        json["tensor_shape"] = shape_json(shape);
    }
    match &info.encoding {
        Some(Encoding::Name(name)) => json["name"] = json!(name),
        Some(Encoding::CooSparse(sparse)) => {
            json["coo_sparse"] = json!({
                "values_tensor_name": sparse.values_tensor_name,
                "indices_tensor_name": sparse.indices_tensor_name,
                "dense_shape_tensor_name": sparse.dense_shape_tensor_name,
            });
        }
        None => {}
    }
    json
}

/// The name of a datatype; its number if TensorFlow has more than these.
fn type_json(number: i32) -> Value {
    DataType::try_from(number).map_or_else(|_| json!(number), |data_type| json!(data_type.as_str_name()))
}

fn shape_json(shape: &TensorShapeProto) -> Value {
    let dim: Vec<_> = shape.dim.iter().map(|dim| json!({"size": dim.size.to_string(), "name": dim.name})).collect();
    json!({"dim": dim, "unknown_rank": shape.unknown_rank})
}

/// A default value. Proto3's JSON has 64-bit integers as strings, bytes in base64, and names for what is not finite.
fn tensor_json(tensor: &TensorProto) -> Value {
    let bytes = |bytes: &[u8]| STANDARD.encode(bytes);
    let float = |value: f64| {
        if value.is_nan() {
            json!("NaN")
        } else if value.is_infinite() {
            json!(if value > 0.0 { "Infinity" } else { "-Infinity" })
        } else {
            json!(value)
        }
    };
    let floats = |values: &[f32]| values.iter().map(|value| float(f64::from(*value))).collect::<Vec<_>>();
    let doubles = |values: &[f64]| values.iter().map(|value| float(*value)).collect::<Vec<_>>();
    let mut json = json!({
        "dtype": type_json(tensor.dtype),
        "version_number": tensor.version_number,
        "tensor_content": bytes(&tensor.tensor_content),
        "half_val": tensor.half_val,
        "float_val": floats(&tensor.float_val),
        "double_val": doubles(&tensor.double_val),
        "int_val": tensor.int_val,
        "string_val": tensor.string_val.iter().map(|value| bytes(value)).collect::<Vec<_>>(),
        "scomplex_val": floats(&tensor.scomplex_val),
        "int64_val": tensor.int64_val.iter().map(i64::to_string).collect::<Vec<_>>(),
        "bool_val": tensor.bool_val,
        "dcomplex_val": doubles(&tensor.dcomplex_val),
        "uint32_val": tensor.uint32_val,
        "uint64_val": tensor.uint64_val.iter().map(u64::to_string).collect::<Vec<_>>(),
    });
    if let Some(shape) = &tensor.tensor_shape {
        json["tensor_shape"] = shape_json(shape);
    }
    json
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::tensorflow::tensor_shape_proto::Dim;

    #[test]
    fn signatures_are_written_whole() {
        let dim = [-1, 64].map(|size| Dim { size, name: String::new() }).into();
        let input = TensorInfo {
            dtype: DataType::DtFloat.into(),
            tensor_shape: Some(TensorShapeProto { dim, unknown_rank: false }),
            encoding: Some(Encoding::Name("x_in:0".to_owned())),
        };
        let unknown = TensorInfo { dtype: 1000, tensor_shape: None, encoding: None };
        let default = TensorProto {
            dtype: DataType::DtFloat.into(),
            float_val: vec![1.5, f32::NAN],
            int64_val: vec![7],
            tensor_content: bytes::Bytes::from_static(b"\xff"),
            ..Default::default()
        };
        let signature = SignatureDef {
            inputs: [("x".to_owned(), input)].into(),
            outputs: [("y".to_owned(), unknown)].into(),
            method_name: "tensorflow/serving/regress".to_owned(),
            defaults: [("x".to_owned(), default)].into(),
        };
        let map = SignatureDefMap { signature_def: [("s".to_owned(), signature)].into() };
        let body: Value = serde_json::from_slice(&body(&ModelRef::latest("m"), 7, &map)).expect("JSON");
        assert_eq!(body["model_spec"], json!({"name": "m", "signature_name": "", "version": "7"}));
        let signature = &body["metadata"]["signature_def"]["signature_def"]["s"];
        assert_eq!(signature["method_name"], "tensorflow/serving/regress");
        assert_eq!(
            signature["inputs"]["x"],
            json!({"dtype": "DT_FLOAT", "name": "x_in:0", "tensor_shape": {
                "dim": [{"size": "-1", "name": ""}, {"size": "64", "name": ""}], "unknown_rank": false}})
        );
        assert_eq!(signature["outputs"]["y"], json!({"dtype": 1000}));
        assert_eq!(signature["defaults"]["x"]["float_val"], json!([1.5, "NaN"]));
        assert_eq!(signature["defaults"]["x"]["int64_val"], json!(["7"]));
        assert_eq!(signature["defaults"]["x"]["tensor_content"], "/w==");
    }
}
