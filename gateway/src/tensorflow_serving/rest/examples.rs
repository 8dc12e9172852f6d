//! Bodies of `:classify` and `:regress` requests: examples, which become serialized `tf.Example` messages.
//!
//! ```text
//! {"signature_name": "...", "context": {FEATURE: VALUE or LIST, ...}, "examples": [{FEATURE: VALUE or LIST, ...}, ...]}
//! ```

use prost::Message;

use crate::json::{Error, Kind, Number, Result, Scanner, is_base64_object, read_base64};
use crate::mt1::DaemonError;
use crate::proto::tensorflow::feature::Kind as FeatureKind;
use crate::proto::tensorflow::{BytesList, Example, Feature, Features, FloatList, Int64List};
use crate::tensorflow_serving::classify::{Examples, ExamplesBuilder};

/// The body of a `:classify` or `:regress` request.
#[derive(Debug)]
pub struct ExamplesBody {
    /// Empty: the default signature.
    pub signature_name: String,
    /// Each with the features of the context.
    pub examples: Examples,
}

/// Reads the body of a request. What follows the first JSON value is ignored, as TensorFlow Serving does.
///
/// The error is RESOURCE_EXHAUSTED if the examples, each with the context, would have more than `limit` bytes.
pub fn read_body(body: &[u8], limit: usize) -> std::result::Result<ExamplesBody, DaemonError> {
    let Members { signature_name, context, examples } = Members::read(&mut Scanner::lenient(body), limit)?;
    let examples = if context.is_empty() { examples } else { examples.with_context(&context, limit)? };
    Ok(ExamplesBody { signature_name, examples })
}

/// The members of the body. The first of several with the same key counts.
struct Members {
    signature_name: String,
    /// A serialized tf.Example, or nothing.
    context: Vec<u8>,
    /// Without the context, which may follow them.
    examples: Examples,
}

impl Members {
    fn read(scanner: &mut Scanner<'_>, limit: usize) -> std::result::Result<Self, DaemonError> {
        if scanner.kind()? != Kind::Object {
            scanner.skip()?;
            return Err(Error::value(0, "JSON Value: Is not object").into());
        }
        let (mut signature_name, mut context, mut examples) = (None, None, None);
        let mut object = scanner.object()?;
        while let Some(key) = scanner.next_key(&mut object)? {
            match key.as_ref() {
                "signature_name" if signature_name.is_none() => {
                    if scanner.kind()? != Kind::String {
                        let message = "not formatted correctly. 'signature_name' key must be a string value.";
                        return Err(Error::value(scanner.offset(), message).into());
                    }
                    signature_name = Some(scanner.string()?.into_owned());
                }
                "context" if context.is_none() => context = Some(read_example(scanner)?),
                "examples" if examples.is_none() => examples = Some(read_examples(scanner, limit)?),
                _ => {
                    scanner.skip()?;
                }
            }
        }
        let Some(examples) = examples else {
            let message = "When method is classify or regress, key 'examples' is expected and was not found";
            return Err(Error::value(scanner.offset(), message).into());
        };
        Ok(Self { signature_name: signature_name.unwrap_or_default(), context: context.unwrap_or_default(), examples })
    }
}

/// Reads examples, and stops when they have more than `limit` bytes: those of a small body may need much memory.
fn read_examples(scanner: &mut Scanner<'_>, limit: usize) -> std::result::Result<Examples, DaemonError> {
    if scanner.kind()? != Kind::Array {
        return Err(Error::value(scanner.offset(), "Expecting 'examples' value to be an list/array").into());
    }
    let mut list = scanner.list()?;
    let mut examples = ExamplesBuilder::default();
    while scanner.next_element(&mut list)? {
        examples.push(&[], &read_example(scanner)?, limit)?;
    }
    let examples = examples.finish();
    if examples.bytes() == 0 {
        return Err(Error::value(scanner.offset(), "'examples' value is an empty array").into());
    }
    Ok(examples)
}

/// Reads one example and returns the serialized message.
fn read_example(scanner: &mut Scanner<'_>) -> Result<Vec<u8>> {
    let kind = scanner.kind()?;
    if kind != Kind::Object {
        let message = format!("Example must be JSON object but got JSON {kind}");
        return Err(Error::value(scanner.offset(), message));
    }
    let mut features = Features::default();
    let mut object = scanner.object()?;
    while let Some(name) = scanner.next_key(&mut object)? {
        let mut feature = Feature::default();
        if scanner.kind()? == Kind::Array {
            let mut list = scanner.list()?;
            while scanner.next_element(&mut list)? {
                add_value(scanner, &name, &mut feature)?;
            }
        } else {
            add_value(scanner, &name, &mut feature)?;
        }
        features.feature.insert(name.into_owned(), feature);
    }
    Ok(Example { features: Some(features) }.encode_to_vec())
}

enum FeatureValue {
    Bytes(Vec<u8>),
    Float(f32),
    Int64(i64),
}

/// Reads one value of a feature. All values of a feature have the same kind, which the first one decides.
fn add_value(scanner: &mut Scanner<'_>, name: &str, feature: &mut Feature) -> Result<()> {
    let offset = scanner.offset();
    let value = read_value(scanner, name)?;
    let kind = feature.kind.get_or_insert_with(|| match value {
        FeatureValue::Bytes(_) => FeatureKind::BytesList(BytesList::default()),
        FeatureValue::Float(_) => FeatureKind::FloatList(FloatList::default()),
        FeatureValue::Int64(_) => FeatureKind::Int64List(Int64List::default()),
    });
    match (kind, value) {
        (FeatureKind::BytesList(list), FeatureValue::Bytes(value)) => list.value.push(value.into()),
        (FeatureKind::FloatList(list), FeatureValue::Float(value)) => list.value.push(value),
        (FeatureKind::Int64List(list), FeatureValue::Int64(value)) => list.value.push(value),
        (kind, _) => {
            let expected = match kind {
                FeatureKind::BytesList(_) => "bytes",
                FeatureKind::FloatList(_) => "float",
                FeatureKind::Int64List(_) => "int64",
            };
            let message = format!("Unexpected element type in feature: {name} expecting type: {expected}");
            return Err(Error::value(offset, message));
        }
    }
    Ok(())
}

fn read_value(scanner: &mut Scanner<'_>, name: &str) -> Result<FeatureValue> {
    match scanner.kind()? {
        Kind::True | Kind::False => Ok(FeatureValue::Int64(i64::from(scanner.boolean()?))),
        Kind::String => Ok(FeatureValue::Bytes(scanner.string()?.as_bytes().to_vec())),
        Kind::Object if is_base64_object(*scanner) => Ok(FeatureValue::Bytes(read_base64(scanner)?)),
        Kind::Number => match scanner.number()? {
            Number::Float(value) => Ok(FeatureValue::Float(value as f32)),
            number => number.as_i64().map(FeatureValue::Int64).ok_or_else(|| {
                let message = format!("Feature: {name} has uint64 element. Only int64 is supported.");
                Error::value(scanner.offset(), message)
            }),
        },
        kind @ (Kind::Null | Kind::Array | Kind::Object) => {
            let message = format!("Feature: {name} has element with unexpected JSON type: {kind}");
            Err(Error::value(scanner.offset(), message))
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::tensor::BytesElements;

    const LIMIT: usize = 1 << 20;

    fn examples(body: &str) -> Vec<Example> {
        let read = read_body(body.as_bytes(), LIMIT).unwrap_or_else(|error| panic!("{body}: {error}"));
        let tensor = read.examples.to_tensor("inputs");
        let elements = BytesElements::new(&tensor.data);
        let examples: Vec<_> =
            elements.map(|element| Example::decode(element.expect("an element")).expect("an example")).collect();
        assert_eq!(tensor.shape, [examples.len() as i64]);
        examples
    }

    fn feature(example: &Example, name: &str) -> Option<FeatureKind> {
        example.features.clone()?.feature.get(name)?.kind.clone()
    }

    #[test]
    fn values_become_features() {
        let body = r#"{"signature_name": "s", "examples": [
            {"f": 1.5, "i": [1, -2, true], "s": ["a", {"b64": "/w=="}], "e": [], "inf": [NaN, 1e39]}, {}]} tail"#;
        assert_eq!(read_body(body.as_bytes(), LIMIT).expect("a body").signature_name, "s");
        let [first, second] = &examples(body)[..] else { panic!("two examples") };
        assert_eq!(feature(first, "f"), Some(FeatureKind::FloatList(FloatList { value: vec![1.5] })));
        assert_eq!(feature(first, "i"), Some(FeatureKind::Int64List(Int64List { value: vec![1, -2, 1] })));
        let strings = BytesList { value: vec![Bytes::from_static(b"a"), Bytes::from_static(b"\xff")] };
        assert_eq!(feature(first, "s"), Some(FeatureKind::BytesList(strings)));
        assert_eq!(feature(first, "e"), None);
        assert!(first.features.as_ref().is_some_and(|features| features.feature.contains_key("e")));
        let Some(FeatureKind::FloatList(floats)) = feature(first, "inf") else { panic!("floats") };
        assert!(floats.value[0].is_nan() && floats.value[1] == f32::INFINITY);
        assert_eq!(feature(second, "f"), None);
    }

    #[test]
    fn the_context_is_part_of_each_example() {
        for body in [
            r#"{"context": {"c": 1}, "examples": [{"x": 1.0}, {"x": 2.0}]}"#,
            r#"{"examples": [{"x": 1.0}, {"x": 2.0}], "context": {"c": 1}}"#,
        ] {
            let examples = examples(body);
            assert_eq!(examples.len(), 2);
            for example in &examples {
                assert_eq!(feature(example, "c"), Some(FeatureKind::Int64List(Int64List { value: vec![1] })));
                assert!(feature(example, "x").is_some());
            }
        }
    }

    #[test]
    fn bodies_that_cannot_be_read_are_refused_with_the_reason() {
        for (body, message) in [
            ("", "JSON Parse error: The document is empty."),
            ("[]", "Is not object"),
            ("{}", "key 'examples' is expected and was not found"),
            (r#"{"examples": {}}"#, "Expecting 'examples' value to be an list/array"),
            (r#"{"examples": []}"#, "'examples' value is an empty array"),
            (r#"{"examples": [[]]}"#, "Example must be JSON object but got JSON Array"),
            (r#"{"context": 1, "examples": [{}]}"#, "Example must be JSON object but got JSON Number"),
            (r#"{"signature_name": 1, "examples": [{}]}"#, "must be a string value"),
            (r#"{"examples": [{"a": null}]}"#, "Feature: a has element with unexpected JSON type: Null"),
            (r#"{"examples": [{"a": [[1]]}]}"#, "Feature: a has element with unexpected JSON type: Array"),
            (r#"{"examples": [{"a": {"b": 1}}]}"#, "Feature: a has element with unexpected JSON type: Object"),
            (r#"{"examples": [{"a": [1, 1.5]}]}"#, "Unexpected element type in feature: a expecting type: int64"),
            (r#"{"examples": [{"a": [1.5, 1]}]}"#, "Unexpected element type in feature: a expecting type: float"),
            (r#"{"examples": [{"a": ["x", 1]}]}"#, "Unexpected element type in feature: a expecting type: bytes"),
            (
                r#"{"examples": [{"a": 9223372036854775808}]}"#,
                "Feature: a has uint64 element. Only int64 is supported.",
            ),
            (r#"{"examples": [{"a": {"b64": "?"}}]}"#, "Unable to base64 decode"),
            (r#"{"examples": [{"a": 1}"#, "JSON Parse error: Missing a comma or ]"),
        ] {
            let refusal = read_body(body.as_bytes(), LIMIT).expect_err(body).message;
            assert!(refusal.contains(message), "{body}: {refusal}");
        }
    }

    #[test]
    fn a_context_does_not_multiply_a_small_body() {
        let body = format!("{{\"context\": {{\"c\": \"{}\"}}, \"examples\": [{{}},{{}},{{}}]}}", "x".repeat(LIMIT / 2));
        assert_eq!(read_body(body.as_bytes(), LIMIT).expect_err("too large").reason, "too_large");
    }

    #[test]
    fn examples_beyond_the_limit_are_not_read() {
        let body = format!("{{\"examples\": [{}", "{},".repeat(200));
        assert_eq!(read_body(body.as_bytes(), 100).expect_err("too large").reason, "too_large");
        assert_eq!(read_body(body.as_bytes(), LIMIT).expect_err("no JSON").reason, "malformed");
    }

    proptest! {
        #[test]
        fn any_body_is_read_or_refused(body: Vec<u8>, value in "[\\[\\]{},:\"0-9.xab -]{0,30}") {
            let _ = read_body(&body, LIMIT);
            let _ = read_body(format!("{{\"examples\": [{{\"a\": {value}}}], \"context\": {{{value}}}}}").as_bytes(), LIMIT);
        }
    }
}
