use proptest::prelude::*;

use super::*;
use crate::mt1::SignatureMetadata;
use crate::tensor::Datatype;

fn input(name: &str, datatype: Datatype) -> TensorMetadata {
    TensorMetadata { name: name.to_owned(), datatype, shape: vec![-1], optional: false, signature_key: None }
}

/// A model with the default signature `x` (FP32), the signature `two` with `a` (INT32) and `b` (BYTES), and `default`
/// with `k` (FP32) and an optional `o` (INT32).
fn model() -> ModelMetadata {
    let signature = |inputs| SignatureMetadata { inputs, ..Default::default() };
    let optional = TensorMetadata { optional: true, ..input("o", Datatype::Int32) };
    ModelMetadata {
        inputs: vec![input("x", Datatype::Fp32)],
        signature_name: Some("serving_default".to_owned()),
        signatures: [
            ("two".to_owned(), signature(vec![input("a", Datatype::Int32), input("b", Datatype::Bytes)])),
            ("default".to_owned(), signature(vec![input("k", Datatype::Fp32), optional])),
            ("text".to_owned(), signature(vec![input("t", Datatype::Bytes)])),
            ("none".to_owned(), signature(Vec::new())),
        ]
        .into(),
        ..Default::default()
    }
}

fn read(body: &str) -> PredictBody {
    read_body(body.as_bytes(), &model()).unwrap_or_else(|error| panic!("{body}: {error}"))
}

fn refusal(body: &str) -> String {
    read_body(body.as_bytes(), &model()).expect_err(body).message
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    tensor.data.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

#[test]
fn rows_of_one_input_are_joined() {
    for (body, shape, values) in [
        (r#"{"instances": [1, 2.5]}"#, &[2][..], &[1.0, 2.5][..]),
        (r#"{"instances": [[1, 2], [3, 4]]}"#, &[2, 2], &[1.0, 2.0, 3.0, 4.0]),
        (r#"{"instances": [[[1]], [[2]]]}"#, &[2, 1, 1], &[1.0, 2.0]),
        (r#"{"instances": [[], []]}"#, &[2, 0], &[]),
        (r#"{"instances": [{"x": [1, 2]}]}"#, &[1, 2], &[1.0, 2.0]),
        (r#"{"instances": [1], "signature_name": "serving_default"}"#, &[1], &[1.0]),
        (r#"{"signature_name": "", "instances": [1], "more": {"instances": 2}}"#, &[1], &[1.0]),
        (r#"{"instances": [1], "instances": "second"} and a tail"#, &[1], &[1.0]),
        (r#" {"instances": [1e39, -Infinity]}"#, &[2], &[f32::INFINITY, f32::NEG_INFINITY]),
    ] {
        let read = read(body);
        assert_eq!((read.format, read.signature_name), (Format::Row, None), "{body}");
        assert_eq!(read.inputs.len(), 1, "{body}");
        assert_eq!(read.inputs[0].name, "x");
        assert_eq!(read.inputs[0].shape, shape, "{body}");
        assert_eq!(floats(&read.inputs[0]), values, "{body}");
    }
}

#[test]
fn columns_are_taken_as_they_are() {
    for (body, shape, values) in [
        (r#"{"inputs": [[1, 2], [3, 4]]}"#, &[2, 2][..], &[1.0, 2.0, 3.0, 4.0][..]),
        (r#"{"inputs": 7}"#, &[], &[7.0]),
        (r#"{"inputs": []}"#, &[0], &[]),
        (r#"{"inputs": {"x": [1]}}"#, &[1], &[1.0]),
        (r#"{"inputs": {"other": null, "x": [1], "x": "second"}}"#, &[1], &[1.0]),
    ] {
        let read = read(body);
        assert_eq!(read.format, Format::Column, "{body}");
        assert_eq!(read.inputs[0].shape, shape, "{body}");
        assert_eq!(floats(&read.inputs[0]), values, "{body}");
    }
}

#[test]
fn several_inputs_have_names() {
    let bodies = [
        r#"{"signature_name": "two", "instances": [{"a": 1, "b": "p"}, {"b": {"b64": "cQ=="}, "a": 2}]}"#,
        r#"{"instances": [{"a": 1, "b": "p"}, {"b": {"b64": "cQ=="}, "a": 2}], "signature_name": "two"}"#,
        r#"{"inputs": {"b": ["p", "q"], "a": [1, 2]}, "signature_name": "two"}"#,
    ];
    for body in bodies {
        let read = read(body);
        assert_eq!(read.signature_name.as_deref(), Some("two"));
        let [a, b] = &read.inputs[..] else { panic!("{body}") };
        assert_eq!((a.name.as_str(), b.name.as_str()), ("a", "b"));
        assert_eq!((&a.shape[..], &b.shape[..]), (&[2][..], &[2][..]), "{body}");
        assert_eq!(&a.data[..], [1, 0, 0, 0, 2, 0, 0, 0]);
        assert_eq!(&b.data[..], b"\x01\0\0\0p\x01\0\0\0q");
    }
    // Columns may differ in dimension 0.
    let read = read(r#"{"signature_name": "two", "inputs": {"a": [1, 2, 3], "b": "p"}}"#);
    assert_eq!((&read.inputs[0].shape[..], &read.inputs[1].shape[..]), (&[3][..], &[][..]));
}

#[test]
fn values_of_another_signature_are_read_again_when_its_name_comes_after_them() {
    let read = read(r#"{"instances": ["p", {"b64": "cQ"}], "signature_name": "text"}"#);
    assert_eq!(read.signature_name.as_deref(), Some("text"));
    assert_eq!(&read.inputs[0].data[..], b"\x01\0\0\0p\x01\0\0\0q");
    assert!(refusal(r#"{"instances": [1], "signature_name": "text"}"#).contains("not of expected type: string"));
}

#[test]
fn inputs_with_defaults_may_be_left_out() {
    for (body, names) in [
        (r#"{"signature_name": "default", "instances": [1, 2]}"#, &["k"][..]),
        (r#"{"signature_name": "default", "instances": [{"k": 1}, {"k": 2}]}"#, &["k"]),
        (r#"{"signature_name": "default", "instances": [{"k": 1, "o": 1}, {"o": 2, "k": 2}]}"#, &["k", "o"]),
        (r#"{"signature_name": "default", "inputs": [1]}"#, &["k"]),
        (r#"{"signature_name": "default", "inputs": {"k": [1]}}"#, &["k"]),
        (r#"{"signature_name": "default", "inputs": {"o": 1, "k": [1]}}"#, &["k", "o"]),
    ] {
        let read = read(body);
        assert_eq!(read.inputs.iter().map(|tensor| tensor.name.as_str()).collect::<Vec<_>>(), names, "{body}");
    }
}

#[test]
fn inputs_are_named_by_their_keys_in_the_signature() {
    let input = TensorMetadata { signature_key: Some("my-input".to_owned()), ..input("my_input", Datatype::Fp32) };
    let metadata = ModelMetadata { inputs: vec![input], ..Default::default() };
    for body in [r#"{"inputs": {"my-input": [1]}}"#, r#"{"instances": [{"my-input": 1}]}"#] {
        let read = read_body(body.as_bytes(), &metadata).expect(body);
        assert_eq!(read.inputs[0].name, "my_input");
    }
    assert!(read_body(br#"{"inputs": {"my_input": [1]}}"#, &metadata).is_err());
}

#[test]
fn bodies_that_cannot_be_read_are_refused_with_the_reason() {
    for (body, message) in [
        ("", "JSON Parse error: The document is empty. at offset: 0"),
        ("instances = [1, 2]", "JSON Parse error: Invalid value. at offset: 0"),
        ("[1]", "JSON Value: Is not object"),
        ("{}", "Missing 'inputs' or 'instances' key"),
        (r#"{"inputs": [1], "instances": [1]}"#, "Not formatted correctly expecting only one of"),
        (r#"{"signature_name": 5, "instances": [1]}"#, "must be a string value"),
        (r#"{"signature_name": "no", "instances": [1]}"#, "Serving signature name: \"no\" not found in signature def"),
        (r#"{"signature_name": "none", "inputs": {}}"#, "Failed to get input map for signature: none"),
        (r#"{"instances": 1}"#, "Expecting 'instances' to be an list/array"),
        (r#"{"instances": []}"#, "No values in 'instances' array"),
        (r#"{"instances": [1, 2"#, "JSON Parse error: Missing a comma or ]"),
        (r#"{"instances": [1, "a"]}"#, {
            "Failed to process element: 1 of 'instances' list. Error: JSON Value: \"a\" Type: String is not of expected \
             type: float"
        }),
        (r#"{"instances": [[1, 2], [3]]}"#, {
            "Failed to process element: 1 of 'instances' list. Error: Expecting tensor size: 2 but got: 1"
        }),
        (r#"{"instances": [[1, 2], [[3, 4]]]}"#, "of 'instances' list. Error: Expecting shape [2] but got: [1,2]"),
        (r#"{"instances": [1, {"x": 1}]}"#, "Expecting value/list but got object at item 1 of input list"),
        (r#"{"instances": [{"x": 1}, 1]}"#, "Expecting object but got list at item 1 of input list"),
        (r#"{"instances": [{"y": 1}]}"#, {
            "Failed to process element: 0 key: y of 'instances' list. Error: JSON object: does not have named input: y"
        }),
        (r#"{"instances": [{"x": 1, "x": 2}]}"#, "key: x of 'instances' list. Error: the key occurs twice"),
        (r#"{"instances": [{"x": 1}, {}]}"#, {
            "Failed to process element: 1 of 'instances' list. JSON object: keys must be equal to: x"
        }),
        (r#"{"signature_name": "two", "instances": [1]}"#, "instances is a plain list, but expecting list of objects"),
        (r#"{"signature_name": "two", "inputs": [1]}"#, "inputs is a plain value/list, but expecting an object"),
        (r#"{"signature_name": "two", "instances": [{"a": 1}]}"#, "keys must be equal to: a,b"),
        (r#"{"signature_name": "two", "inputs": {"a": [1]}}"#, "Missing named input: b in 'inputs' object."),
        (r#"{"signature_name": "two", "instances": [{"a": 1, "b": {"b64": "?"}}]}"#, "Unable to base64 decode"),
        (r#"{"signature_name": "default", "instances": [{"k": 1}, {"k": 1, "o": 1}]}"#, "keys must be equal to: k"),
        (r#"{"signature_name": "default", "instances": [{"k": 1, "o": 1}, {"k": 1}]}"#, "keys must be equal to: k,o"),
        (r#"{"instances": ["a"], "signature_name": "text""#, "JSON Parse error: Missing a comma or }"),
    ] {
        let refusal = refusal(body);
        assert!(refusal.contains(message), "{body}: {refusal}");
    }
}

proptest! {
    #[test]
    fn any_body_is_read_or_refused(body: Vec<u8>) {
        let _ = read_body(&body, &model());
    }

    #[test]
    fn bodies_like_requests_are_read_or_refused(
        key in "instances|inputs|signature_name",
        other in "\"signature_name\": \"(two|text|default|none|)\"|\"inputs\": 1|\"x\": \\[",
        value in "[\\[\\]{},:\"0-9.xabk NaInfity-]{0,30}",
    ) {
        for body in [format!("{{\"{key}\": {value}, {other}}}"), format!("{{{other}, \"{key}\": [{value}]}}")] {
            if let Ok(read) = read_body(body.as_bytes(), &model()) {
                for tensor in &read.inputs {
                    let elements: i64 = tensor.shape.iter().product();
                    let size = tensor.datatype.size().unwrap_or(0) as i64;
                    prop_assert!(size == 0 || elements * size == tensor.data.len() as i64, "{}", body);
                }
            }
        }
    }

    #[test]
    fn rows_and_columns_of_the_same_values_are_the_same_tensor(rows in prop::collection::vec(prop::array::uniform3(any::<f32>()), 1..20)) {
        prop_assume!(rows.iter().flatten().all(|value| value.is_finite()));
        let values = format!("{rows:?}");
        let by_row = read(&format!("{{\"instances\": {values}}}"));
        let by_column = read(&format!("{{\"inputs\": {values}}}"));
        prop_assert_eq!(&by_row.inputs, &by_column.inputs);
        prop_assert_eq!(floats(&by_row.inputs[0]), rows.concat());
    }
}
