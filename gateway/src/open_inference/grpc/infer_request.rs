//! `ModelInferRequest`: from the wire into tensors, without copying what clients send raw.

use std::time::Duration;

use bytes::Bytes;

use super::contents::Contents;
use super::parameter::{self, Parameter};
use crate::grpc::wire::Fields;
use crate::mt1::{DaemonError, InferRequest, MAX_DIMENSIONS, ModelRef};
use crate::open_inference::refusals;
use crate::tensor::{Datatype, Tensor};

/// A request that was read, and the id that its reply carries.
#[derive(Debug)]
pub struct InferMessage {
    pub id: String,
    pub request: InferRequest,
}

/// Messages up to this size are decoded at once.
const INLINE_BYTES: usize = 64 << 10;

/// As many fields are looked at in order to find out whether decoding takes long.
const EXAMINED_FIELDS: usize = 1024;

/// Whether decoding a message would keep the event loop for long: it is large, and its tensors are not raw.
pub fn is_slow(message: &[u8]) -> bool {
    if message.len() <= INLINE_BYTES {
        return false;
    }
    let (mut fields, mut raw) = (Fields::new(message), false);
    for _ in 0..EXAMINED_FIELDS {
        match fields.next_field() {
            Ok(Some((number, _))) => raw |= number == 7,
            Ok(None) | Err(_) => return !raw,
        }
    }
    true
}

/// Reads a `ModelInferRequest`. The data of raw inputs, and of FP32 and FP64 contents, are slices of the message.
pub fn decode(message: &Bytes) -> Result<InferMessage, DaemonError> {
    let mut id = String::new();
    let mut request = InferRequest {
        model: ModelRef::default(),
        inputs: Vec::new(),
        outputs: Vec::new(),
        signature_name: None,
        priority: None,
        timeout: None,
    };
    let mut contents = Vec::new();
    let mut raw = Vec::new();
    let mut fields = Fields::new(message);
    while let Some((number, value)) = fields.next_field()? {
        match number {
            1 => value.text()?.clone_into(&mut request.model.name),
            2 => request.model.version = not_empty(value.text()?),
            3 => value.text()?.clone_into(&mut id),
            4 => set_parameter(&mut request, value.slice()?)?,
            5 => {
                refusals::check_count(request.inputs.len(), "inputs")?;
                let (input, content) = decode_input(message, value.slice()?)?;
                request.inputs.push(input);
                contents.push(content);
            }
            6 => {
                refusals::check_count(request.outputs.len(), "outputs")?;
                request.outputs.push(decode_output(value.slice()?)?);
            }
            7 => {
                refusals::check_count(raw.len(), "raw_input_contents")?;
                raw.push(message.slice_ref(value.slice()?));
            }
            _ => {}
        }
    }
    if raw.is_empty() {
        for (input, content) in request.inputs.iter_mut().zip(contents) {
            input.data = content.into_data(input)?;
        }
    } else {
        set_raw(&mut request.inputs, &contents, raw)?;
    }
    Ok(InferMessage { id, request })
}

fn set_raw(inputs: &mut [Tensor], contents: &[Contents], raw: Vec<Bytes>) -> Result<(), DaemonError> {
    if raw.len() != inputs.len() {
        let (given, wanted) = (raw.len(), inputs.len());
        return Err(DaemonError::invalid(format!(
            "raw_input_contents has {given} entries for {wanted} inputs: if it is used, it needs one for each input"
        )));
    }
    if let Some((input, _)) = inputs.iter().zip(contents).find(|(_, content)| content.is_used()) {
        let name = &input.name;
        return Err(DaemonError::invalid(format!(
            "input {name:?} has contents, but the request has raw_input_contents: use one of them for all inputs"
        )));
    }
    for (input, data) in inputs.iter_mut().zip(raw) {
        input.data = data;
    }
    Ok(())
}

fn not_empty(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

fn decode_input(message: &Bytes, input: &[u8]) -> Result<(Tensor, Contents), DaemonError> {
    let mut tensor = Tensor { name: String::new(), datatype: Datatype::Bool, shape: Vec::new(), data: Bytes::new() };
    let mut datatype = "";
    let mut contents = Contents::default();
    let mut fields = Fields::new(input);
    while let Some((number, value)) = fields.next_field()? {
        match number {
            1 => value.text()?.clone_into(&mut tensor.name),
            2 => datatype = value.text()?,
            3 => value.extend_integers(&mut tensor.shape, MAX_DIMENSIONS, "a shape")?,
            4 => refuse_shared_memory(value.slice()?)?,
            5 => contents.extend(message, value.slice()?)?,
            _ => {}
        }
    }
    tensor.datatype = Datatype::from_name(datatype).ok_or_else(|| {
        let mut error = refusals::unknown_datatype(&format!("input '{}'", tensor.name), datatype);
        error.field = Some(tensor.name.clone());
        error
    })?;
    Ok((tensor, contents))
}

fn decode_output(output: &[u8]) -> Result<String, DaemonError> {
    let mut name = String::new();
    let mut fields = Fields::new(output);
    while let Some((number, value)) = fields.next_field()? {
        match number {
            1 => value.text()?.clone_into(&mut name),
            2 => {
                let entry = value.slice()?;
                refuse_shared_memory(entry)?;
                if let ("classification", parameter) = parameter::decode(entry)?
                    && parameter != Parameter::Integer(0)
                {
                    return Err(refusals::classification());
                }
            }
            _ => {}
        }
    }
    Ok(name)
}

fn refuse_shared_memory(entry: &[u8]) -> Result<(), DaemonError> {
    let (name, _) = parameter::decode(entry)?;
    if name.starts_with("shared_memory_") {
        return Err(refusals::shared_memory());
    }
    Ok(())
}

/// Takes over a parameter of a request. Those that this server does not know are ignored, as Triton does.
fn set_parameter(request: &mut InferRequest, entry: &[u8]) -> Result<(), DaemonError> {
    let (name, parameter) = parameter::decode(entry)?;
    match name {
        "timeout" => {
            let micros = parameter::whole_number(name, parameter)?;
            request.timeout = (micros > 0).then(|| Duration::from_micros(micros));
        }
        "priority" => request.priority = Some(parameter::whole_number(name, parameter)?),
        "sequence_id" if !matches!(parameter, Parameter::None | Parameter::Integer(0) | Parameter::Text("")) => {
            return Err(refusals::sequences());
        }
        "sequence_start" | "sequence_end" if parameter == Parameter::Bool(true) => return Err(refusals::sequences()),
        "signature_name" => request.signature_name = not_empty(parameter::text(name, parameter)?),
        "version_label" => request.model.label = not_empty(parameter::text(name, parameter)?),
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use prost::Message;

    use super::*;
    use crate::grpc::wire::Writer;
    use crate::proto::inference::infer_parameter::ParameterChoice;
    use crate::proto::inference::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
    use crate::proto::inference::{InferParameter, InferTensorContents, ModelInferRequest};

    fn parameters(values: &[(&str, ParameterChoice)]) -> BTreeMap<String, InferParameter> {
        let entry = |(name, choice): &(&str, ParameterChoice)| {
            ((*name).to_owned(), InferParameter { parameter_choice: Some(choice.clone()) })
        };
        values.iter().map(entry).collect()
    }

    fn input(datatype: &str, shape: &[i64], contents: InferTensorContents) -> InferInputTensor {
        InferInputTensor {
            name: "x".to_owned(),
            datatype: datatype.to_owned(),
            shape: shape.to_vec(),
            contents: Some(contents),
            ..Default::default()
        }
    }

    fn with_inputs(inputs: Vec<InferInputTensor>) -> ModelInferRequest {
        ModelInferRequest { model_name: "m".to_owned(), inputs, ..Default::default() }
    }

    fn read(request: &ModelInferRequest) -> Result<InferMessage, DaemonError> {
        decode(&Bytes::from(request.encode_to_vec()))
    }

    #[test]
    fn large_messages_are_slow_unless_their_tensors_are_raw() {
        let message = |fields: &[(u32, usize)]| {
            let mut writer = Writer::new();
            fields.iter().for_each(|&(number, bytes)| writer.bytes_field(number, &vec![0; bytes]));
            writer.finish().concat()
        };
        assert!(!is_slow(&message(&[(1, 1), (5, INLINE_BYTES / 2)])));
        assert!(is_slow(&message(&[(1, 1), (5, INLINE_BYTES)])));
        assert!(!is_slow(&message(&[(1, 1), (5, 100), (7, INLINE_BYTES)])));
        assert!(is_slow(&message(
            &[(7, INLINE_BYTES); 1].into_iter().chain([(6, 1); EXAMINED_FIELDS]).collect::<Vec<_>>()
        )));
        assert!(is_slow(&vec![0xff; INLINE_BYTES + 1]), "the error is found elsewhere");
    }

    #[test]
    fn a_request_with_raw_contents_is_read_without_copies() {
        let request = ModelInferRequest {
            model_name: "m".to_owned(),
            model_version: "3".to_owned(),
            id: "a-1".to_owned(),
            parameters: parameters(&[
                ("timeout", ParameterChoice::Int64Param(1500)),
                ("priority", ParameterChoice::Uint64Param(1)),
                ("sequence_id", ParameterChoice::Int64Param(0)),
                ("unknown", ParameterChoice::DoubleParam(0.5)),
            ]),
            inputs: vec![InferInputTensor {
                name: "x".to_owned(),
                datatype: "FP16".to_owned(),
                shape: vec![2, 300],
                ..Default::default()
            }],
            outputs: vec![InferRequestedOutputTensor { name: "y".to_owned(), ..Default::default() }],
            raw_input_contents: vec![Bytes::from(vec![7; 1200])],
        };
        let message = Bytes::from(request.encode_to_vec());
        let InferMessage { id, request } = decode(&message).unwrap();
        assert_eq!((id.as_str(), request.model.name.as_str()), ("a-1", "m"));
        assert_eq!(request.model.version.as_deref(), Some("3"));
        assert_eq!(request.timeout, Some(Duration::from_micros(1500)));
        assert_eq!(request.priority, Some(1));
        assert_eq!(request.outputs, ["y"]);
        let tensor = &request.inputs[0];
        assert_eq!((tensor.datatype, &tensor.shape[..]), (Datatype::Fp16, &[2, 300][..]));
        assert_eq!(tensor.data.as_ptr(), message[message.len() - 1200..].as_ptr());
    }

    #[test]
    fn typed_contents_become_data() {
        let contents = InferTensorContents::default;
        let table: Vec<(InferInputTensor, Vec<u8>)> = vec![
            (input("BOOL", &[2], InferTensorContents { bool_contents: vec![true, false], ..contents() }), vec![1, 0]),
            (input("INT8", &[2], InferTensorContents { int_contents: vec![-1, 5], ..contents() }), vec![255, 5]),
            (input("INT16", &[1], InferTensorContents { int_contents: vec![-2], ..contents() }), vec![254, 255]),
            (
                input("INT32", &[1], InferTensorContents { int_contents: vec![-2], ..contents() }),
                (-2i32).to_le_bytes().to_vec(),
            ),
            (
                input("INT64", &[], InferTensorContents { int64_contents: vec![i64::MIN], ..contents() }),
                i64::MIN.to_le_bytes().to_vec(),
            ),
            (input("UINT8", &[1], InferTensorContents { uint_contents: vec![255], ..contents() }), vec![255]),
            (
                input("UINT64", &[1], InferTensorContents { uint64_contents: vec![u64::MAX], ..contents() }),
                vec![255; 8],
            ),
            (
                input("FP32", &[2], InferTensorContents { fp32_contents: vec![1.5, -0.0], ..contents() }),
                [1.5f32.to_le_bytes(), (-0.0f32).to_le_bytes()].concat(),
            ),
            (
                input("FP64", &[1], InferTensorContents { fp64_contents: vec![0.1], ..contents() }),
                0.1f64.to_le_bytes().to_vec(),
            ),
            (
                input(
                    "BYTES",
                    &[2],
                    InferTensorContents { bytes_contents: vec![Bytes::new(), Bytes::from("ab")], ..contents() },
                ),
                vec![0, 0, 0, 0, 2, 0, 0, 0, b'a', b'b'],
            ),
            (input("FP32", &[0, 4], contents()), vec![]),
        ];
        for (input, data) in table {
            let datatype = input.datatype.clone();
            let message = read(&with_inputs(vec![input])).unwrap();
            assert_eq!(message.request.inputs[0].data, data, "{datatype}");
        }
    }

    #[test]
    fn numbers_may_come_one_by_one_or_in_several_pieces() {
        // x: UINT16 [5], contents: uint_contents = 1, packed [2, 300], packed [4], 5.
        let contents = b"\x20\x01\x22\x03\x02\xac\x02\x22\x01\x04\x20\x05";
        let mut tensor = Writer::new();
        tensor.text(1, "x");
        tensor.text(2, "UINT16");
        tensor.varint(3, 5);
        tensor.bytes_field(5, contents);
        let mut writer = Writer::new();
        writer.message(5, tensor);
        let message = decode(&Bytes::from(writer.finish().concat())).unwrap();
        assert_eq!(message.request.inputs[0].data, [1u16, 2, 300, 4, 5].map(u16::to_le_bytes).concat());
    }

    #[test]
    fn what_does_not_fit_is_refused_in_plain_words() {
        let contents = InferTensorContents::default;
        let floats = |values: &[f32]| InferTensorContents { fp32_contents: values.to_vec(), ..contents() };
        let raw = |mut request: ModelInferRequest, count| {
            request.raw_input_contents = vec![Bytes::from("abcd"); count];
            request
        };
        let with_parameter = |name: &str, choice| ModelInferRequest {
            parameters: parameters(&[(name, choice)]),
            ..with_inputs(vec![input("FP32", &[1], floats(&[1.0]))])
        };
        let mut shared = input("FP32", &[1], contents());
        shared.parameters = parameters(&[("shared_memory_region", ParameterChoice::StringParam("r".to_owned()))]);
        let table = [
            (with_inputs(vec![input("FP99", &[1], contents())]), "unknown datatype \"FP99\""),
            (with_inputs(vec![input("FP32", &[3], floats(&[1.0]))]), "has 1 elements in its contents"),
            (with_inputs(vec![input("FP32", &[-1], floats(&[1.0]))]), "is not valid"),
            (with_inputs(vec![input("FP32", &[i64::MAX, 8], floats(&[1.0]))]), "is not valid"),
            (with_inputs(vec![input("INT32", &[1], floats(&[1.0]))]), "needs int_contents"),
            (with_inputs(vec![input("FP32", &[1], contents())]), "needs fp32_contents"),
            (with_inputs(vec![input("BF16", &[1], floats(&[1.0]))]), "only raw_input_contents"),
            (
                with_inputs(vec![input("INT8", &[1], InferTensorContents { int_contents: vec![128], ..contents() })]),
                "128 does not fit INT8",
            ),
            (
                with_inputs(vec![input(
                    "INT8",
                    &[1],
                    InferTensorContents { int_contents: vec![1, 128], ..contents() },
                )]),
                "has 2 elements in its contents",
            ),
            (raw(with_inputs(vec![input("FP32", &[1], contents())]), 2), "2 entries for 1 inputs"),
            (raw(with_inputs(vec![input("FP32", &[1], floats(&[1.0]))]), 1), "use one of them"),
            (with_inputs(vec![input("FP32", &[0; 65], contents())]), "more than 64"),
            (with_inputs(vec![shared]), "shared memory of clients"),
            (with_parameter("sequence_id", ParameterChoice::Int64Param(7)), "are not supported: models keep no state"),
            (
                with_parameter("sequence_start", ParameterChoice::BoolParam(true)),
                "are not supported: models keep no state",
            ),
            (with_parameter("timeout", ParameterChoice::Int64Param(-1)), "parameters.timeout is not an integer"),
            (with_parameter("priority", ParameterChoice::DoubleParam(1.0)), "parameters.priority is not an integer"),
            (
                with_parameter("signature_name", ParameterChoice::Int64Param(1)),
                "parameters.signature_name is not a string",
            ),
        ];
        for (request, part) in table {
            let error = read(&request).unwrap_err();
            assert!(error.message.contains(part), "{} does not contain {part}", error.message);
        }
    }

    proptest! {
        #[test]
        fn decoding_never_panics(message in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode(&Bytes::from(message));
        }

        #[test]
        fn typed_contents_of_any_shape_never_take_more_than_the_message_allows(
            datatype in 0..Datatype::ALL.len(),
            shape in proptest::collection::vec(prop_oneof![-2i64..10, Just(i64::MAX), any::<i64>()], 0..6),
            ints in proptest::collection::vec(any::<i32>(), 0..20),
            floats in proptest::collection::vec(any::<f32>(), 0..20),
            strings in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..5), 0..5),
        ) {
            let contents = InferTensorContents {
                int_contents: ints,
                fp32_contents: floats,
                bytes_contents: strings.into_iter().map(Bytes::from).collect(),
                ..Default::default()
            };
            let request = with_inputs(vec![input(Datatype::ALL[datatype].name(), &shape, contents)]);
            let length = request.encoded_len();
            if let Ok(message) = read(&request) {
                prop_assert!(message.request.inputs[0].data.len() <= length * 8);
            }
        }
    }
}
