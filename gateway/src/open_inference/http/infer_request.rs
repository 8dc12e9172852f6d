//! The body of an inference request: JSON, and after it the bytes of binary tensors.

use std::time::Duration;

use bytes::Bytes;

use super::json_values::{read_boolean, read_optional_string, read_unsigned};
use super::request_tensors::{Input, Output, Source};
use crate::json::{Kind, Scanner};
use crate::mt1::{Area, DaemonError, InputHeader, ModelRef, RequestHeader};
use crate::open_inference::refusals::{self, wrong};

/// What the JSON of a request says.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct InferBody {
    /// Returned with the response.
    pub id: Option<String>,
    pub inputs: Vec<Input>,
    /// The wanted outputs; empty: all.
    pub outputs: Vec<Output>,
    /// Whether outputs that do not say otherwise are binary (`binary_data_output`).
    pub binary: bool,
    pub timeout: Option<Duration>,
    pub priority: Option<u64>,
    pub signature_name: Option<String>,
    pub version_label: Option<String>,
}

impl InferBody {
    /// Reads the JSON, and decodes the data in it.
    pub fn parse(text: &[u8]) -> Result<Self, DaemonError> {
        let mut body = Self::default();
        let mut scanner = Scanner::lenient(text);
        let mut has_inputs = false;
        if scanner.kind()? != Kind::Object {
            return Err(DaemonError::invalid("the request is not a JSON object"));
        }
        let mut object = scanner.object()?;
        while let Some(key) = scanner.next_key(&mut object)? {
            match &*key {
                "id" => body.id = read_optional_string(&mut scanner, "id")?.filter(|id| !id.is_empty()),
                "parameters" => body.read_parameters(&mut scanner)?,
                "inputs" => {
                    has_inputs = true;
                    let mut list = scanner.list().map_err(|_| wrong("inputs", "a list"))?;
                    while scanner.next_element(&mut list)? {
                        let index = body.inputs.len();
                        refusals::check_count(index, "inputs")?;
                        body.inputs.push(Input::read(&mut scanner, index)?);
                    }
                }
                "outputs" if scanner.kind()? == Kind::Null => scanner.null()?,
                "outputs" => {
                    let mut list = scanner.list().map_err(|_| wrong("outputs", "a list"))?;
                    while scanner.next_element(&mut list)? {
                        let index = body.outputs.len();
                        refusals::check_count(index, "outputs")?;
                        body.outputs.push(Output::read(&mut scanner, index)?);
                    }
                }
                _ => drop(scanner.skip()?),
            }
        }
        scanner.end()?;
        if !has_inputs {
            return Err(DaemonError::invalid("the request has no 'inputs'"));
        }
        Ok(body)
    }

    fn read_parameters(&mut self, scanner: &mut Scanner<'_>) -> Result<(), DaemonError> {
        if scanner.kind()? == Kind::Null {
            return Ok(scanner.null()?);
        }
        let mut object = scanner.object().map_err(|_| wrong("parameters", "an object"))?;
        while let Some(key) = scanner.next_key(&mut object)? {
            match &*key {
                "binary_data_output" => self.binary = read_boolean(scanner, "parameters.binary_data_output")?,
                "timeout" => {
                    let microseconds = read_unsigned(scanner, "parameters.timeout")?;
                    self.timeout = (microseconds > 0).then(|| Duration::from_micros(microseconds));
                }
                "priority" => self.priority = Some(read_unsigned(scanner, "parameters.priority")?),
                "signature_name" => self.signature_name = read_optional_string(scanner, "parameters.signature_name")?,
                "version_label" => self.version_label = read_optional_string(scanner, "parameters.version_label")?,
                "sequence_id" => {
                    // Clients send 0 or "" for no sequence.
                    let text = scanner.skip()?;
                    if !matches!(text, b"0" | b"\"\"" | b"null") {
                        return Err(refusals::sequences());
                    }
                }
                "sequence_start" | "sequence_end" => {
                    if scanner.skip()? == b"true" {
                        return Err(refusals::sequences());
                    }
                }
                _ => drop(scanner.skip()?),
            }
        }
        Ok(())
    }

    /// Returns the header of MT1's request.
    ///
    /// Args: the model; the time that the request gets in microseconds; the areas of inputs that are in shared memory,
    /// in the order of the inputs, or nothing; the areas of outputs, by name.
    pub fn header(
        &self,
        model: &ModelRef,
        timeout_us: u64,
        input_areas: &[Option<Area>],
        output_areas: &[(String, Area)],
    ) -> Bytes {
        let inputs = self.inputs.iter().enumerate().map(|(index, input)| InputHeader {
            name: &input.name,
            datatype: input.datatype,
            shape: &input.shape,
            area: input_areas.get(index).and_then(Option::as_ref),
        });
        let inputs: Vec<InputHeader<'_>> = inputs.collect();
        let outputs: Vec<String> = self.outputs.iter().map(|output| output.name.clone()).collect();
        let header = RequestHeader {
            model,
            inputs: &inputs,
            outputs: &outputs,
            areas: output_areas,
            signature_name: self.signature_name.as_deref(),
            priority: self.priority,
            timeout_us,
        };
        header.to_bytes().into()
    }

    /// Whether an output is wanted as bytes after the JSON of the response.
    pub fn is_binary(&self, name: &str) -> bool {
        let output = self.outputs.iter().find(|output| output.name == name);
        output.and_then(|output| output.binary).unwrap_or(self.binary)
    }

    /// Returns the bytes that all binary inputs have together.
    pub fn binary_bytes(&self) -> Result<usize, DaemonError> {
        let sizes = self.inputs.iter().map(|input| match input.source {
            Source::Binary(size) => size,
            Source::Json(_) => 0,
        });
        sizes
            .into_iter()
            .try_fold(0usize, usize::checked_add)
            .ok_or_else(|| DaemonError::invalid("the values of 'binary_data_size' are too large"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::mt1::Code;

    fn parse(text: &str) -> Result<InferBody, DaemonError> {
        InferBody::parse(text.as_bytes())
    }

    #[test]
    fn everything_that_a_request_may_say_is_read() {
        let body = parse(
            r#"{"id": "7", "new": {"a": [1]}, "parameters": {"timeout": 1500000, "priority": 1, "other": "x",
                "binary_data_output": true, "sequence_id": 0, "sequence_start": false, "signature_name": "s"},
                "outputs": [{"name": "y"}, {"name": "z", "parameters": {"binary_data": false, "classification": 0}}],
                "inputs": [
                  {"name": "a", "shape": [2, 2], "datatype": "INT32", "data": [1, 2, 3, 4]},
                  {"data": [[1, 2], [3, 4]], "name": "b", "shape": [2, 2], "datatype": "UINT8"},
                  {"name": "c", "shape": [1, 3], "datatype": "FP32", "parameters": {"binary_data_size": 12}},
                  {"name": "d", "shape": [2], "datatype": "BYTES", "parameters": {"binary_data_size": 9}},
                  {"name": "e", "shape": [2], "datatype": "BYTES", "data": ["a", "é"]},
                  {"name": "f", "shape": [], "datatype": "BOOL", "data": [true]}]}"#,
        )
        .unwrap();
        assert_eq!((body.id.as_deref(), body.priority, body.binary), (Some("7"), Some(1), true));
        assert_eq!((body.timeout, body.signature_name.as_deref()), (Some(Duration::from_micros(1_500_000)), Some("s")));
        let sources: Vec<_> = body.inputs.iter().map(|input| &input.source).collect();
        let int32 = [1, 2, 3, 4].into_iter().flat_map(i32::to_le_bytes).collect::<Vec<_>>();
        assert_eq!(sources[0], &Source::Json(int32.into()));
        assert_eq!(sources[1], &Source::Json(Bytes::from_static(&[1, 2, 3, 4])));
        assert_eq!(sources[2], &Source::Binary(12));
        assert_eq!(sources[4], &Source::Json(Bytes::from_static("\x01\0\0\0a\x02\0\0\0é".as_bytes())));
        assert_eq!(sources[5], &Source::Json(Bytes::from_static(&[1])));
        assert_eq!(body.binary_bytes(), Ok(21));
        assert_eq!(body.outputs[0], Output { name: "y".into(), binary: None });
        assert_eq!(body.outputs[1], Output { name: "z".into(), binary: Some(false) });
    }

    #[test]
    fn what_is_wrong_is_named() {
        let input = |text: &str| format!(r#"{{"inputs": [{{{text}}}]}}"#);
        let table = [
            ("".to_owned(), Code::InvalidArgument, "empty"),
            ("[]".to_owned(), Code::InvalidArgument, "not a JSON object"),
            ("{}".to_owned(), Code::InvalidArgument, "no 'inputs'"),
            (r#"{"inputs": {}}"#.to_owned(), Code::InvalidArgument, "inputs is not a list"),
            (r#"{"inputs": []} x"#.to_owned(), Code::InvalidArgument, "JSON"),
            (r#"{"inputs": [], "id": 5}"#.to_owned(), Code::InvalidArgument, "id is not a string"),
            (r#"{"inputs": [], "parameters": {"timeout": -1}}"#.to_owned(), Code::InvalidArgument, "timeout"),
            (r#"{"inputs": [], "parameters": {"sequence_id": 3}}"#.to_owned(), Code::Unimplemented, "sequences"),
            (r#"{"inputs": [], "parameters": {"sequence_end": true}}"#.to_owned(), Code::Unimplemented, "sequences"),
            (
                r#"{"inputs": [], "outputs": [{"name": "y", "parameters": {"classification": 3}}]}"#.to_owned(),
                Code::Unimplemented,
                "classification",
            ),
            (input(""), Code::InvalidArgument, "no 'name'"),
            (input(r#""name": "x", "shape": [1]"#), Code::InvalidArgument, "no 'datatype'"),
            (input(r#""name": "x", "datatype": "FP31", "shape": [1]"#), Code::InvalidArgument, "FP31"),
            (input(r#""name": "x", "datatype": "FP32", "shape": [-1]"#), Code::InvalidArgument, "shape"),
            (input(r#""name": "x", "datatype": "FP32", "shape": [1.5]"#), Code::InvalidArgument, "shape"),
            (input(r#""name": "x", "datatype": "FP32", "shape": [1]"#), Code::InvalidArgument, "neither"),
            (
                input(r#""name": "x", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 5}"#),
                Code::InvalidArgument,
                "takes 4 bytes",
            ),
            (
                input(r#""name": "x", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": -4}"#),
                Code::InvalidArgument,
                "binary_data_size",
            ),
            (
                input(r#""name": "x", "datatype": "FP64", "shape": [9223372036854775807], "data": [1]"#),
                Code::InvalidArgument,
                "does not fit",
            ),
            (
                input(
                    r#""name": "x", "datatype": "FP64", "shape": [9223372036854775807],
                          "parameters": {"binary_data_size": 8}"#,
                ),
                Code::InvalidArgument,
                "too large",
            ),
            (input(r#""name": "x", "datatype": "INT8", "shape": [1], "data": [300]"#), Code::InvalidArgument, "'x'"),
            (input(r#""name": "x", "datatype": "INT8", "shape": [2], "data": [1]"#), Code::InvalidArgument, "fit"),
            (
                input(r#""name": "x", "datatype": "INT8", "shape": [1], "parameters": {"shared_memory_region": "r"}"#),
                Code::Unimplemented,
                "shared memory",
            ),
        ];
        for (text, code, words) in table {
            let error = parse(&text).unwrap_err();
            assert_eq!(error.code, code, "{text}: {}", error.message);
            assert!(error.message.contains(words), "{text}: {}", error.message);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_request_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = InferBody::parse(&bytes);
        }

        #[test]
        fn a_request_with_changed_bytes_is_a_request_or_an_error(
            changes in prop::collection::vec((0usize..200, any::<u8>()), 1..8)
        ) {
            let mut text = br#"{"id":"1","inputs":[{"name":"x","shape":[2,1],"datatype":"FP32","parameters":
                {"binary_data_size":8}},{"name":"y","shape":[1],"datatype":"BYTES","data":["a"]}],"outputs":[{"name":
                "z","parameters":{"binary_data":true}}],"parameters":{"timeout":5}}"#.to_vec();
            for (place, byte) in changes {
                let length = text.len();
                text[place % length] = byte;
            }
            let _ = InferBody::parse(&text);
        }
    }
}
