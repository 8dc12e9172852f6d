//! `ModelInferResponse`: from tensors onto the wire, without copying large ones.

use crate::grpc::wire::{Writer, packed_varints};
use crate::mt1::InferReply;

/// Writes a `ModelInferResponse`, with raw contents as Triton does.
pub fn encode(reply: InferReply, id: &str) -> Writer {
    encode_with(reply, id, false)
}

/// Writes the response of a stream, with the parameter that marks it as the last one of its request.
pub fn encode_final(reply: InferReply, id: &str) -> Writer {
    encode_with(reply, id, true)
}

fn encode_with(reply: InferReply, id: &str, is_final: bool) -> Writer {
    let mut writer = Writer::new();
    writer.text(1, &reply.model_name);
    writer.text(2, &reply.model_version);
    writer.text(3, id);
    if is_final {
        // parameters["triton_final_response"].bool_param = true
        writer.bytes_field(4, b"\x0a\x15triton_final_response\x12\x02\x08\x01");
    }
    for output in &reply.outputs {
        let mut tensor = Writer::new();
        tensor.text(1, &output.name);
        tensor.text(2, output.datatype.name());
        if !output.shape.is_empty() {
            let shape = packed_varints(output.shape.iter().map(|&size| size as u64));
            tensor.bytes_field(3, &shape);
        }
        writer.message(5, tensor);
    }
    for output in reply.outputs {
        writer.large(6, output.data);
    }
    writer
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use prost::Message;

    use super::*;
    use crate::proto::inference::ModelInferResponse;
    use crate::proto::inference::infer_parameter::ParameterChoice;
    use crate::tensor::{Datatype, Tensor};

    #[test]
    fn replies_are_what_generated_code_reads() {
        let reply = InferReply {
            model_name: "m".to_owned(),
            model_version: "2".to_owned(),
            outputs: vec![
                Tensor {
                    name: "y".to_owned(),
                    datatype: Datatype::Fp32,
                    shape: vec![1, 2],
                    data: Bytes::from(vec![1; 8]),
                },
                Tensor { name: "z".to_owned(), datatype: Datatype::Int8, shape: vec![], data: Bytes::from(vec![9]) },
            ],
        };
        let written = encode_final(reply, "7").finish().concat();
        let response = ModelInferResponse::decode(&written[..]).unwrap();
        assert_eq!((response.model_name.as_str(), response.model_version.as_str()), ("m", "2"));
        assert_eq!(response.id, "7");
        assert_eq!(
            response.parameters["triton_final_response"].parameter_choice,
            Some(ParameterChoice::BoolParam(true))
        );
        assert_eq!(response.outputs[0].shape, [1, 2]);
        assert_eq!(response.outputs[0].datatype, "FP32");
        assert_eq!(response.outputs[1].name, "z");
        assert_eq!(response.raw_output_contents, [Bytes::from(vec![1; 8]), Bytes::from(vec![9])]);
    }
}
