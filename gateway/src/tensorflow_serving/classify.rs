//! Classification and regression of tf.Examples, for both of TensorFlow Serving's interfaces.
//!
//! Such a signature has one input, `inputs`, of serialized tf.Examples. What it answers is `classes` (strings) and
//! `scores` (floats) of the shape [examples, classes], or `outputs` (floats) of the shape [examples] or [examples, 1].

use std::time::Duration;

use bytes::Bytes;

use super::metadata::{self, CLASSIFY, REGRESS};
use super::signature;
use crate::context::Context;
use crate::mt1::{Code, DaemonError, InferReply, InferRequest, ModelMetadata, ModelRef};
use crate::proto::tensorflow::SignatureDef;
use crate::proto::tensorflow::serving::{Class, ClassificationResult, Classifications, Regression, RegressionResult};
use crate::tensor::{BytesElements, Datatype, Tensor, push_element};

const INPUTS: &str = "inputs";
const CLASSES: &str = "classes";
const SCORES: &str = "scores";
const OUTPUTS: &str = "outputs";

/// What is asked of examples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    Classify,
    Regress,
}

/// What a model answered.
#[derive(Clone, Debug, PartialEq)]
pub enum Results {
    Classes(ClassificationResult),
    Values(RegressionResult),
}

/// An answer, and which version and signature it is of.
#[derive(Clone, Debug, PartialEq)]
pub struct Answered {
    pub results: Results,
    pub model_version: String,
    pub signature_name: String,
}

/// Serialized tf.Examples, as the data of a BYTES tensor.
#[derive(Clone, Debug)]
pub struct Examples {
    data: Bytes,
    count: usize,
}

/// Collects examples.
#[derive(Default)]
pub struct ExamplesBuilder {
    data: Vec<u8>,
    count: usize,
}

impl ExamplesBuilder {
    /// Appends an example. The features of a context come first, if there is one: messages that follow one another are
    /// merged, so that each example has them.
    ///
    /// The error is RESOURCE_EXHAUSTED if all together would have more than `limit` bytes.
    pub fn push(&mut self, context: &[u8], example: &[u8], limit: usize) -> Result<(), DaemonError> {
        let length = context.len() + example.len();
        if self.data.len() + length + 4 > limit {
            let message = format!("the examples with their context are larger than {limit} bytes");
            return Err(DaemonError::new(Code::ResourceExhausted, "too_large", message));
        }
        if context.is_empty() {
            push_element(&mut self.data, example);
        } else {
            push_element(&mut self.data, &[context, example].concat());
        }
        self.count += 1;
        Ok(())
    }

    pub fn finish(self) -> Examples {
        Examples { data: self.data.into(), count: self.count }
    }
}

impl Examples {
    /// Returns the bytes of all examples.
    pub fn bytes(&self) -> usize {
        self.data.len()
    }

    /// Returns them with the features of a context in front of each.
    ///
    /// The error is RESOURCE_EXHAUSTED if all together would have more than `limit` bytes.
    pub fn with_context(&self, context: &[u8], limit: usize) -> Result<Examples, DaemonError> {
        let mut examples = ExamplesBuilder::default();
        // What the builder has written is whole.
        for example in BytesElements::new(&self.data).flatten() {
            examples.push(context, example, limit)?;
        }
        Ok(examples.finish())
    }

    /// Returns them as an input. All inputs that are made of them share their memory.
    pub fn to_tensor(&self, name: &str) -> Tensor {
        Tensor {
            name: name.to_owned(),
            datatype: Datatype::Bytes,
            shape: vec![self.count as i64],
            data: self.data.clone(),
        }
    }
}

/// Classifies examples, or computes their regression, with a signature; an empty name means the default one.
pub async fn run(
    context: &Context,
    model: &ModelRef,
    signature_name: &str,
    method: Method,
    examples: &Examples,
    timeout: Option<Duration>,
) -> Result<Answered, DaemonError> {
    if examples.count == 0 {
        return Err(DaemonError::invalid("Input is empty."));
    }
    let metadata = context.daemon.model_metadata(model).await?;
    let signature_name = metadata::resolved_name(&metadata, signature_name).to_owned();
    let outputs = check_signature(&metadata, &signature_name, method)?;
    let signature = signature::find(&metadata, Some(&signature_name))?;
    // The daemon may have another name for the input.
    let input = signature.inputs.iter().find(|input| input.key() == INPUTS);
    let request = InferRequest {
        model: model.clone(),
        inputs: vec![examples.to_tensor(input.map_or(INPUTS, |input| &input.name))],
        outputs,
        signature_name: signature.name.map(str::to_owned),
        priority: None,
        timeout,
    };
    let reply = context.daemon.infer(request).await?;
    let results = match method {
        Method::Classify => Results::Classes(classifications(&reply, examples.count)?),
        Method::Regress => Results::Values(regressions(&reply, examples.count)?),
    };
    Ok(Answered { results, model_version: reply.model_version, signature_name })
}

/// Checks that a signature is one for the method. Returns the outputs to ask for.
fn check_signature(metadata: &ModelMetadata, name: &str, method: Method) -> Result<Vec<String>, DaemonError> {
    let map = metadata::signature_defs(metadata)?;
    let Some(signature) = map.signature_def.get(name) else {
        return Err(signature::not_found(name));
    };
    let (what, wanted) = match method {
        Method::Classify => ("classification", CLASSIFY),
        Method::Regress => ("regression", REGRESS),
    };
    if signature.method_name != wanted {
        let method_name = &signature.method_name;
        return Err(DaemonError::invalid(format!(
            "Expected {what} signature method_name to be {wanted}. Was: {method_name}"
        )));
    }
    if signature.inputs.len() != 1 {
        return Err(DaemonError::invalid("Expected one input Tensor."));
    }
    if !signature.inputs.contains_key(INPUTS) {
        return Err(DaemonError::invalid(format!(
            "No {what} inputs found in SignatureDef: it has no input \"inputs\""
        )));
    }
    let outputs = wanted_outputs(signature, method);
    if outputs.is_empty() {
        let names = match method {
            Method::Classify => "\"classes\" or \"scores\"",
            Method::Regress => "\"outputs\"",
        };
        return Err(DaemonError::invalid(format!("Expected {what} signature outputs to contain {names}.")));
    }
    Ok(outputs)
}

fn wanted_outputs(signature: &SignatureDef, method: Method) -> Vec<String> {
    let names: &[&str] = match method {
        Method::Classify => &[CLASSES, SCORES],
        Method::Regress => &[OUTPUTS],
    };
    let known = names.iter().filter(|name| signature.outputs.contains_key(**name));
    known.map(|name| (*name).to_owned()).collect()
}

fn classifications(reply: &InferReply, examples: usize) -> Result<ClassificationResult, DaemonError> {
    let find = |name| reply.outputs.iter().find(|output| output.name == name);
    let (classes, scores) = (find(CLASSES), find(SCORES));
    let mut columns = None;
    for output in [classes, scores].into_iter().flatten() {
        let width = match output.shape[..] {
            [rows, width] if rows == examples as i64 => width,
            _ => return Err(unexpected(output, &format!("[{examples}, classes]"))),
        };
        if *columns.get_or_insert(width) != width {
            let message = "Expected classes and scores Tensors to have the same number of classes per example.";
            return Err(output_error(message.to_owned()));
        }
    }
    let width = usize::try_from(columns.unwrap_or(0)).unwrap_or(0);
    let mut labels = match classes {
        Some(output) if output.datatype == Datatype::Bytes => Some(BytesElements::new(&output.data)),
        Some(output) => return Err(unexpected(output, "strings")),
        None => None,
    };
    let mut values = scores.map(floats).transpose()?;
    let mut result = ClassificationResult { classifications: Vec::with_capacity(examples) };
    for _ in 0..examples {
        let mut row = Classifications { classes: Vec::with_capacity(width) };
        for _ in 0..width {
            let label = match labels.as_mut().and_then(Iterator::next) {
                Some(Ok(label)) => String::from_utf8_lossy(label).into_owned(),
                _ => String::new(),
            };
            row.classes.push(Class { label, score: values.as_mut().and_then(Iterator::next).unwrap_or(0.0) });
        }
        result.classifications.push(row);
    }
    Ok(result)
}

fn regressions(reply: &InferReply, examples: usize) -> Result<RegressionResult, DaemonError> {
    let Some(output) = reply.outputs.iter().find(|output| output.name == OUTPUTS) else {
        return Err(output_error("the model returned no output \"outputs\"".to_owned()));
    };
    match output.shape[..] {
        [rows] | [rows, 1] if rows == examples as i64 => {}
        _ => return Err(unexpected(output, &format!("[{examples}] or [{examples}, 1]"))),
    }
    Ok(RegressionResult { regressions: floats(output)?.map(|value| Regression { value }).collect() })
}

fn floats(output: &Tensor) -> Result<impl Iterator<Item = f32> + '_, DaemonError> {
    if output.datatype != Datatype::Fp32 {
        return Err(unexpected(output, "floats"));
    }
    let (values, _) = output.data.as_chunks::<4>();
    Ok(values.iter().map(|value| f32::from_le_bytes(*value)))
}

fn unexpected(output: &Tensor, wanted: &str) -> DaemonError {
    let Tensor { name, datatype, shape, .. } = output;
    output_error(format!("the output {name:?} is {} {shape:?}, expected {wanted}", datatype.name()))
}

fn output_error(message: String) -> DaemonError {
    DaemonError::new(Code::FailedPrecondition, "output_invalid", message)
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::proto::tensorflow::serving::SignatureDefMap;
    use crate::proto::tensorflow::{Example, Feature, Features, FloatList, TensorInfo, feature::Kind};

    fn metadata(method_name: &str, inputs: &[&str], outputs: &[&str]) -> ModelMetadata {
        let infos = |names: &[&str]| names.iter().map(|name| ((*name).to_owned(), TensorInfo::default())).collect();
        let signature = SignatureDef {
            inputs: infos(inputs),
            outputs: infos(outputs),
            method_name: method_name.to_owned(),
            ..Default::default()
        };
        let map = SignatureDefMap { signature_def: [("s".to_owned(), signature)].into() };
        ModelMetadata { signature_defs: Some(map.encode_to_vec().into()), ..Default::default() }
    }

    fn floats_of(name: &str, shape: &[i64], values: &[f32]) -> Tensor {
        let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Tensor { name: name.to_owned(), datatype: Datatype::Fp32, shape: shape.to_vec(), data: data.into() }
    }

    fn strings_of(name: &str, shape: &[i64], values: &[&[u8]]) -> Tensor {
        let mut data = Vec::new();
        values.iter().for_each(|value| push_element(&mut data, value));
        Tensor { name: name.to_owned(), datatype: Datatype::Bytes, shape: shape.to_vec(), data: data.into() }
    }

    fn reply(outputs: Vec<Tensor>) -> InferReply {
        InferReply { model_name: "m".to_owned(), model_version: "1".to_owned(), outputs }
    }

    #[test]
    fn signatures_must_be_of_the_method() {
        for (metadata, method, expected) in [
            (metadata(CLASSIFY, &["inputs"], &["classes", "scores"]), Method::Classify, Ok(vec!["classes", "scores"])),
            (metadata(CLASSIFY, &["inputs"], &["scores"]), Method::Classify, Ok(vec!["scores"])),
            (metadata(REGRESS, &["inputs"], &["outputs"]), Method::Regress, Ok(vec!["outputs"])),
            (metadata(REGRESS, &["inputs"], &["outputs"]), Method::Classify, Err("method_name to be")),
            (metadata("", &["inputs"], &["outputs"]), Method::Regress, Err("Expected regression signature")),
            (metadata(CLASSIFY, &["a", "inputs"], &["scores"]), Method::Classify, Err("Expected one input Tensor")),
            (metadata(CLASSIFY, &["x"], &["scores"]), Method::Classify, Err("No classification inputs found")),
            (metadata(CLASSIFY, &["inputs"], &["y"]), Method::Classify, Err("to contain \"classes\" or \"scores\"")),
            (metadata(REGRESS, &["inputs"], &["y"]), Method::Regress, Err("to contain \"outputs\"")),
        ] {
            match (check_signature(&metadata, "s", method), expected) {
                (Ok(outputs), Ok(expected)) => assert_eq!(outputs, expected),
                (Err(error), Err(part)) => assert!(error.message.contains(part), "{}", error.message),
                (result, expected) => panic!("{result:?} instead of {expected:?}"),
            }
        }
        let unknown = check_signature(&metadata(CLASSIFY, &[], &[]), "t", Method::Classify);
        assert!(unknown.unwrap_err().message.contains("\"t\" not found"));
    }

    #[test]
    fn a_context_is_part_of_each_example() {
        let example = |name: &str, value| {
            let kind = Some(Kind::FloatList(FloatList { value: vec![value] }));
            Example { features: Some(Features { feature: [(name.to_owned(), Feature { kind })].into() }) }
        };
        let (context, example) = (example("c", 1.0).encode_to_vec(), example("e", 2.0).encode_to_vec());
        let mut examples = ExamplesBuilder::default();
        examples.push(&context, &example, 1000).unwrap();
        examples.push(&[], &example, 1000).unwrap();
        assert_eq!(examples.push(&context, &example, 60).unwrap_err().code, Code::ResourceExhausted);
        let examples = examples.finish();
        let tensor = examples.to_tensor("inputs");
        assert_eq!(tensor.data.as_ptr(), examples.to_tensor("other").data.as_ptr(), "tasks share the memory");
        assert_eq!(tensor.shape, [2]);
        let names: Vec<Vec<_>> = BytesElements::new(&tensor.data)
            .map(|element| Example::decode(element.unwrap()).unwrap().features.unwrap().feature.into_keys().collect())
            .collect();
        assert_eq!(names, [vec!["c", "e"], vec!["e"]]);
    }

    #[test]
    fn classes_have_labels_and_scores_or_one_of_them() {
        let classes = || strings_of("classes", &[2, 2], &[b"a", b"b", b"c", b"\xff"]);
        let scores = || floats_of("scores", &[2, 2], &[0.1, 0.9, 0.5, 0.5]);
        for (outputs, expected) in [
            (vec![scores(), classes()], [("a", 0.1), ("b", 0.9), ("c", 0.5), ("\u{fffd}", 0.5)]),
            (vec![classes()], [("a", 0.0), ("b", 0.0), ("c", 0.0), ("\u{fffd}", 0.0)]),
            (vec![scores()], [("", 0.1), ("", 0.9), ("", 0.5), ("", 0.5)]),
        ] {
            let result = classifications(&reply(outputs), 2).unwrap();
            assert_eq!(result.classifications.len(), 2);
            let found: Vec<_> = result.classifications.into_iter().flat_map(|row| row.classes).collect();
            let expected = expected.map(|(label, score)| Class { label: label.to_owned(), score });
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn regressions_have_one_value_for_each_example() {
        for shape in [&[2][..], &[2, 1]] {
            let result = regressions(&reply(vec![floats_of("outputs", shape, &[1.5, 2.5])]), 2).unwrap();
            assert_eq!(result.regressions, [Regression { value: 1.5 }, Regression { value: 2.5 }]);
        }
    }

    #[test]
    fn outputs_of_another_form_are_errors() {
        for outputs in [
            vec![floats_of("scores", &[3, 1], &[0.0; 3])],
            vec![floats_of("scores", &[2], &[0.0; 2])],
            vec![floats_of("scores", &[2, 1], &[0.0; 2]), strings_of("classes", &[2, 2], &[b"", b"", b"", b""])],
            vec![floats_of("classes", &[2, 1], &[0.0; 2])],
        ] {
            assert_eq!(classifications(&reply(outputs), 2).unwrap_err().code, Code::FailedPrecondition);
        }
        for outputs in [
            vec![],
            vec![floats_of("outputs", &[3], &[0.0; 3])],
            vec![floats_of("outputs", &[2, 2], &[0.0; 4])],
            vec![strings_of("outputs", &[2], &[b"", b""])],
        ] {
            assert_eq!(regressions(&reply(outputs), 2).unwrap_err().code, Code::FailedPrecondition);
        }
    }
}
