//! `PredictionService.Predict` on the wire.

use std::collections::HashSet;

use bytes::Bytes;

use super::{Spec, spec_writer, tensor_proto};
use crate::grpc::wire::{Fields, Writer};
use crate::grpc::{Answer, Call, decode_tensors};
use crate::mt1::{DaemonError, InferReply, InferRequest, MAX_TENSORS, TensorMetadata};
use crate::tensor::Tensor;
use crate::tensorflow_serving::{errors, metadata, signature};

/// What a PredictRequest has.
#[derive(Debug)]
struct Predict {
    spec: Spec,
    inputs: Vec<Tensor>,
    output_filter: Vec<String>,
}

/// Answers a call of `Predict`.
pub async fn answer(call: Call) -> Result<Answer, DaemonError> {
    let (context, deadline, held) = (call.context.clone(), call.deadline(), call.held());
    let message = call.message().await?;
    let limit = context.settings.limits.max_body_bytes;
    let Predict { spec, mut inputs, output_filter } = decode_tensors(message, limit, decode).await?;
    // A shape alone can stand for many elements, all equal.
    held.cover(inputs.iter().map(|input| input.data.len()).sum())?;
    let translated = |error| errors::translate(error, &spec.model);
    let metadata = context.daemon.model_metadata(&spec.model).await.map_err(translated)?;
    let signature = signature::find(&metadata, Some(&spec.signature_name))?;
    use_names_of_daemon(&mut inputs, signature.inputs);
    let request = InferRequest {
        model: spec.model.clone(),
        inputs,
        outputs: output_filter,
        signature_name: signature.name.map(str::to_owned),
        priority: None,
        timeout: deadline.timeout(None)?,
    };
    let reply = context.daemon.infer(request).await.map_err(translated)?;
    let signature_name = metadata::resolved_name(&metadata, &spec.signature_name);
    Ok(Answer::Message(encode(reply, &spec.model.name, signature_name)?))
}

/// An input whose key is no name of an argument has another name for the daemon, as `my_input` for `my-input`.
fn use_names_of_daemon(inputs: &mut [Tensor], declared: &[TensorMetadata]) {
    for input in inputs {
        let same = declared.iter().find(|tensor| tensor.signature_key.is_some() && tensor.key() == input.name);
        if let Some(tensor) = same {
            input.name.clone_from(&tensor.name);
        }
    }
}

fn decode(message: &Bytes, limit: usize) -> Result<Predict, DaemonError> {
    let (mut spec, mut inputs, mut output_filter) = (None, Vec::<Tensor>::new(), Vec::new());
    let mut fields = Fields::new(message);
    let mut total = 0;
    while let Some((number, value)) = fields.next_field()? {
        match number {
            1 => spec = Some(value.slice()?),
            2 if inputs.len() == MAX_TENSORS => {
                return Err(DaemonError::invalid(format!("the request has more than {MAX_TENSORS} inputs")));
            }
            2 => {
                let tensor = decode_input(message, value.slice()?, limit.saturating_sub(total))?;
                total += tensor.data.len();
                inputs.push(tensor);
            }
            3 if output_filter.len() == MAX_TENSORS => {
                return Err(DaemonError::invalid(format!("output_filter has more than {MAX_TENSORS} names")));
            }
            3 => output_filter.push(value.text()?.to_owned()),
            _ => {}
        }
    }
    Ok(Predict { spec: Spec::decode(spec)?, inputs: last_of_each_name(inputs), output_filter })
}

/// The last of several entries of a map with the same key counts.
fn last_of_each_name(mut inputs: Vec<Tensor>) -> Vec<Tensor> {
    if inputs.len() > 1 {
        let mut names = HashSet::new();
        inputs.reverse();
        inputs.retain(|input| names.insert(input.name.clone()));
        inputs.reverse();
    }
    inputs
}

/// Reads an entry of `map<string, TensorProto>`.
fn decode_input(message: &Bytes, entry: &[u8], limit: usize) -> Result<Tensor, DaemonError> {
    let (mut name, mut proto) = ("", &[][..]);
    let mut fields = Fields::new(entry);
    while let Some((number, value)) = fields.next_field()? {
        match number {
            1 => name = value.text()?,
            2 => proto = value.slice()?,
            _ => {}
        }
    }
    tensor_proto::decode(message, proto, name, limit)
}

/// Writes a PredictResponse.
fn encode(reply: InferReply, name: &str, signature_name: &str) -> Result<Vec<Bytes>, DaemonError> {
    let mut writer = Writer::new();
    for output in reply.outputs {
        let mut entry = Writer::new();
        entry.text(1, &output.name);
        entry.message(2, tensor_proto::encode(output)?);
        writer.message(1, entry);
    }
    writer.message(2, spec_writer(name, reply.model_version.parse().ok(), signature_name));
    Ok(writer.finish())
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::proto::tensorflow::serving::model_spec::VersionChoice;
    use crate::proto::tensorflow::serving::{ModelSpec, PredictRequest, PredictResponse};
    use crate::proto::tensorflow::tensor_shape_proto::Dim;
    use crate::proto::tensorflow::{DataType, TensorProto, TensorShapeProto};
    use crate::tensor::Datatype;

    fn floats(values: &[f32]) -> TensorProto {
        let dim = vec![Dim { size: values.len() as i64, name: String::new() }];
        TensorProto {
            dtype: DataType::DtFloat.into(),
            tensor_shape: Some(TensorShapeProto { dim, unknown_rank: false }),
            float_val: values.to_vec(),
            ..Default::default()
        }
    }

    #[test]
    fn requests_are_read() {
        let request = PredictRequest {
            model_spec: Some(ModelSpec {
                name: "m".to_owned(),
                version_choice: Some(VersionChoice::VersionLabel("stable".to_owned())),
                signature_name: "s".to_owned(),
            }),
            inputs: [("a".to_owned(), floats(&[1.0, 2.0])), ("b".to_owned(), floats(&[]))].into(),
            output_filter: vec!["y".to_owned(), "z".to_owned()],
        };
        let message = Bytes::from(request.encode_to_vec());
        let read = decode(&message, 1000).unwrap();
        assert_eq!((read.spec.model.label.as_deref(), read.spec.signature_name.as_str()), (Some("stable"), "s"));
        assert_eq!(read.output_filter, ["y", "z"]);
        assert_eq!((read.inputs[0].name.as_str(), read.inputs[0].data.len()), ("a", 8));
        assert_eq!(read.inputs[1].shape, [0]);
    }

    #[test]
    fn the_last_entry_of_a_key_counts_and_all_inputs_share_one_limit() {
        let entry = |value| PredictRequest {
            model_spec: Some(ModelSpec::default()),
            inputs: [("a".to_owned(), floats(&[value]))].into(),
            ..Default::default()
        };
        let message = Bytes::from([entry(1.0).encode_to_vec(), entry(2.0).encode_to_vec()].concat());
        let read = decode(&message, 1000).unwrap();
        assert_eq!(read.inputs.len(), 1);
        assert_eq!(read.inputs[0].data, 2.0f32.to_le_bytes()[..]);
        assert!(decode(&message, 7).unwrap_err().message.contains("more than 3 bytes"));
    }

    #[test]
    fn a_request_without_model_spec_is_refused() {
        assert_eq!(decode(&Bytes::new(), 1000).unwrap_err().message, "Missing ModelSpec");
    }

    #[test]
    fn replies_name_version_and_signature() {
        let data = Bytes::from_static(&[0, 0, 128, 63]);
        let output = Tensor { name: "y".to_owned(), datatype: Datatype::Fp32, shape: vec![1], data };
        let reply = InferReply { model_name: "m".to_owned(), model_version: "5".to_owned(), outputs: vec![output] };
        let written = encode(reply, "m", "serving_default").unwrap().concat();
        let response = PredictResponse::decode(&written[..]).unwrap();
        assert_eq!(response.outputs["y"], floats(&[1.0]));
        let spec = response.model_spec.unwrap();
        assert_eq!(spec.version_choice, Some(VersionChoice::Version(5)));
        assert_eq!((spec.name.as_str(), spec.signature_name.as_str()), ("m", "serving_default"));
    }

    #[test]
    fn inputs_are_renamed_where_the_daemon_has_another_name() {
        let input =
            |name: &str| Tensor { name: name.to_owned(), datatype: Datatype::Fp32, shape: vec![], data: Bytes::new() };
        let declared = [TensorMetadata {
            name: "my_input".to_owned(),
            datatype: Datatype::Fp32,
            shape: vec![],
            optional: false,
            signature_key: Some("my-input".to_owned()),
        }];
        let mut inputs = vec![input("my-input"), input("other")];
        use_names_of_daemon(&mut inputs, &declared);
        assert_eq!([inputs[0].name.as_str(), inputs[1].name.as_str()], ["my_input", "other"]);
    }
}
