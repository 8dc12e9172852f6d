//! `tensorflow.serving.PredictionService` and `ModelService`.

mod models;
mod predict;
mod tensor_proto;

use bytes::Bytes;
use futures_util::future::try_join_all;

use super::classify::{self, Answered, Examples, ExamplesBuilder, Method, Results};
use super::metadata::{CLASSIFY, REGRESS, serialized_signature_defs};
use super::{errors, status};
use crate::context::Context;
use crate::grpc::wire::{Fields, Writer};
use crate::grpc::{Answer, Call, Deadline, decode, decode_tensors, encode, unknown_method};
use crate::mt1::{DaemonError, ModelRef};
use crate::proto::tensorflow::serving as messages;
use crate::proto::tensorflow::serving::inference_result::Result as TaskResult;
use crate::proto::tensorflow::serving::model_spec::VersionChoice;

/// What a ModelSpec names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spec {
    pub model: ModelRef,
    /// Empty: the default signature.
    pub signature_name: String,
}

impl Spec {
    /// Reads a ModelSpec, or refuses a request without one.
    pub fn decode(message: Option<&[u8]>) -> Result<Self, DaemonError> {
        let mut spec = Spec::default();
        let mut fields = Fields::new(message.ok_or_else(|| DaemonError::invalid("Missing ModelSpec"))?);
        while let Some((number, value)) = fields.next_field()? {
            match number {
                1 => value.text()?.clone_into(&mut spec.model.name),
                2 => {
                    let mut version = 0;
                    let mut wrapper = Fields::new(value.slice()?);
                    while let Some((number, value)) = wrapper.next_field()? {
                        if number == 1 {
                            version = value.varint()? as i64;
                        }
                    }
                    (spec.model.version, spec.model.label) = (Some(version.to_string()), None);
                }
                3 => value.text()?.clone_into(&mut spec.signature_name),
                4 => (spec.model.version, spec.model.label) = (None, label(value.text()?)),
                _ => {}
            }
        }
        Ok(spec)
    }

    fn from_message(message: Option<messages::ModelSpec>) -> Result<Self, DaemonError> {
        let message = message.ok_or_else(|| DaemonError::invalid("Missing ModelSpec"))?;
        let (version, label) = match message.version_choice {
            Some(VersionChoice::Version(version)) => (Some(version.to_string()), None),
            Some(VersionChoice::VersionLabel(text)) => (None, label(&text)),
            None => (None, None),
        };
        Ok(Self { model: ModelRef { name: message.name, version, label }, signature_name: message.signature_name })
    }
}

/// Some clients set a label that is empty where they want none.
fn label(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

/// Answers a call of `PredictionService`.
pub async fn predict(call: Call, method: &str) -> Result<Answer, DaemonError> {
    match method {
        "Predict" => predict::answer(call).await,
        // What is called less often has its future on the heap, so that the other's stays small.
        "Classify" => Box::pin(classify_or_regress(call, Method::Classify)).await,
        "Regress" => Box::pin(classify_or_regress(call, Method::Regress)).await,
        "MultiInference" => Box::pin(multi_inference(call)).await,
        "GetModelMetadata" => Box::pin(model_metadata(call)).await,
        _ => Err(unknown_method("tensorflow.serving.PredictionService", method)),
    }
}

/// Answers a call of `ModelService`.
pub async fn model(call: Call, method: &str) -> Result<Answer, DaemonError> {
    let (context, deadline) = (call.context.clone(), call.deadline());
    match method {
        "GetModelStatus" => {
            let request: messages::GetModelStatusRequest = decode(&call.message().await?)?;
            let Spec { model, .. } = Spec::from_message(request.model_spec)?;
            let versions = deadline.within(status::versions(&context.daemon, &model)).await?;
            Ok(encode(&models::model_status(versions)))
        }
        "HandleReloadConfigRequest" => {
            let request: messages::ReloadConfigRequest = decode(&call.message().await?)?;
            deadline.within(models::reload(&context, request)).await.map(|reply| encode(&reply))
        }
        _ => Err(unknown_method("tensorflow.serving.ModelService", method)),
    }
}

/// Reads fields 1 (a ModelSpec) and 2 (an Input) of a ClassificationRequest or RegressionRequest.
fn read_request(message: &[u8], limit: usize) -> Result<(Spec, Examples), DaemonError> {
    let (mut spec, mut input) = (None, None);
    let mut fields = Fields::new(message);
    while let Some((number, value)) = fields.next_field()? {
        match number {
            1 => spec = Some(value.slice()?),
            2 => input = Some(value.slice()?),
            _ => {}
        }
    }
    Ok((Spec::decode(spec)?, read_examples(input, limit)?))
}

/// Reads an Input. The examples are passed on as they were serialized.
fn read_examples(input: Option<&[u8]>, limit: usize) -> Result<Examples, DaemonError> {
    let mut examples = ExamplesBuilder::default();
    let mut kinds = Fields::new(input.unwrap_or_default());
    while let Some((kind, value)) = kinds.next_field()? {
        // 1: ExampleList, 2: ExampleListWithContext
        if kind != 1 && kind != 2 {
            continue;
        }
        let list = value.slice()?;
        let mut context = &[][..];
        let mut fields = Fields::new(list);
        while let Some((number, value)) = fields.next_field()? {
            if (kind, number) == (2, 2) {
                context = value.slice()?;
            }
        }
        let mut fields = Fields::new(list);
        while let Some((number, value)) = fields.next_field()? {
            if number == 1 {
                examples.push(context, value.slice()?, limit)?;
            }
        }
    }
    Ok(examples.finish())
}

async fn classify_or_regress(call: Call, method: Method) -> Result<Answer, DaemonError> {
    let (context, deadline, held) = (call.context.clone(), call.deadline(), call.held());
    let message = call.message().await?;
    let limit = context.settings.limits.max_body_bytes;
    let (spec, examples) = decode_tensors(message, limit, |message, limit| read_request(message, limit)).await?;
    held.cover(examples.bytes())?;
    let answered = run(&context, &spec, method, &examples, deadline).await?;
    let model_spec = Some(answered_spec(&spec.model.name, &answered));
    Ok(match answered.results {
        Results::Classes(result) => encode(&messages::ClassificationResponse { result: Some(result), model_spec }),
        Results::Values(result) => encode(&messages::RegressionResponse { result: Some(result), model_spec }),
    })
}

async fn run(
    context: &Context,
    spec: &Spec,
    method: Method,
    examples: &Examples,
    deadline: Deadline,
) -> Result<Answered, DaemonError> {
    let timeout = deadline.timeout(None)?;
    classify::run(context, &spec.model, &spec.signature_name, method, examples, timeout)
        .await
        .map_err(|error| errors::translate(error, &spec.model))
}

/// The model_spec of a reply: which version and signature has answered.
fn answered_spec(name: &str, answered: &Answered) -> messages::ModelSpec {
    messages::ModelSpec {
        name: name.to_owned(),
        version_choice: answered.model_version.parse().ok().map(VersionChoice::Version),
        signature_name: answered.signature_name.clone(),
    }
}

async fn multi_inference(call: Call) -> Result<Answer, DaemonError> {
    let (context, deadline, held) = (call.context.clone(), call.deadline(), call.held());
    let message = call.message().await?;
    let limit = context.settings.limits.max_body_bytes;
    let (tasks, examples) = decode_tensors(message, limit, |message, limit| read_tasks(message, limit)).await?;
    held.cover(examples.bytes())?;
    let answers = tasks.iter().map(|(spec, method)| run(&context, spec, *method, &examples, deadline));
    let answers = try_join_all(answers).await?;
    let results = tasks.iter().zip(answers).map(|((spec, _), answered)| messages::InferenceResult {
        model_spec: Some(answered_spec(&spec.model.name, &answered)),
        result: Some(match answered.results {
            Results::Classes(result) => TaskResult::ClassificationResult(result),
            Results::Values(result) => TaskResult::RegressionResult(result),
        }),
    });
    Ok(encode(&messages::MultiInferenceResponse { results: results.collect() }))
}

/// Tasks of one request. Each of them runs the model once.
const MAX_TASKS: usize = 64;

fn read_tasks(message: &[u8], limit: usize) -> Result<(Vec<(Spec, Method)>, Examples), DaemonError> {
    let (mut tasks, mut input) = (Vec::<(Spec, Method)>::new(), None);
    let mut fields = Fields::new(message);
    while let Some((number, value)) = fields.next_field()? {
        match number {
            1 if tasks.len() == MAX_TASKS => {
                return Err(DaemonError::invalid(format!("the request has more than {MAX_TASKS} tasks")));
            }
            1 => {
                let task = read_task(value.slice()?)?;
                if let Some((first, _)) = tasks.first()
                    && first.model.name != task.0.model.name
                {
                    return Err(DaemonError::invalid(
                        "All ModelSpecs in a MultiInferenceRequest must access the same model name.",
                    ));
                }
                if tasks.iter().any(|(spec, _)| *spec == task.0) {
                    let name = &task.0.signature_name;
                    return Err(DaemonError::invalid(format!("Duplicate evaluation of signature: {name}")));
                }
                tasks.push(task);
            }
            2 => input = Some(value.slice()?),
            _ => {}
        }
    }
    if tasks.is_empty() {
        return Err(DaemonError::invalid("The MultiInferenceRequest has no tasks."));
    }
    Ok((tasks, read_examples(input, limit)?))
}

fn read_task(message: &[u8]) -> Result<(Spec, Method), DaemonError> {
    let (mut spec, mut method_name) = (None, "");
    let mut fields = Fields::new(message);
    while let Some((number, value)) = fields.next_field()? {
        match number {
            1 => spec = Some(value.slice()?),
            2 => method_name = value.text()?,
            _ => {}
        }
    }
    let method = match method_name {
        CLASSIFY => Method::Classify,
        REGRESS => Method::Regress,
        _ => {
            let message = format!("Unsupported signature method_name: {method_name}");
            return Err(DaemonError::unsupported(message));
        }
    };
    Ok((Spec::decode(spec)?, method))
}

/// The only metadata field that TensorFlow Serving knows.
const SIGNATURE_DEF: &str = "signature_def";
const SIGNATURE_DEF_MAP: &str = "type.googleapis.com/tensorflow.serving.SignatureDefMap";

async fn model_metadata(call: Call) -> Result<Answer, DaemonError> {
    let (context, deadline) = (call.context.clone(), call.deadline());
    let request: messages::GetModelMetadataRequest = decode(&call.message().await?)?;
    let Spec { model, .. } = Spec::from_message(request.model_spec)?;
    if request.metadata_field.is_empty() {
        return Err(DaemonError::invalid("GetModelMetadataRequest must specify at least one metadata_field"));
    }
    if let Some(field) = request.metadata_field.iter().find(|field| *field != SIGNATURE_DEF) {
        return Err(DaemonError::invalid(format!("Metadata field {field} is not supported")));
    }
    let metadata = deadline.within(context.daemon.model_metadata(&model)).await;
    let metadata = metadata.map_err(|error| errors::translate(error, &model))?;
    let version = match &model.version {
        Some(version) => version.parse().ok(),
        None if model.label.is_some() => deadline.within(status::version_of_label(&context.daemon, &model)).await?,
        None => metadata.versions.last().and_then(|version| version.parse().ok()),
    };
    Ok(Answer::Message(metadata_response(&model.name, version, serialized_signature_defs(&metadata))))
}

/// Writes a GetModelMetadataResponse, with the serialized map as it is: no field of it is lost.
fn metadata_response(name: &str, version: Option<i64>, signature_defs: Bytes) -> Vec<Bytes> {
    let mut any = Writer::new();
    any.text(1, SIGNATURE_DEF_MAP);
    any.large(2, signature_defs);
    let mut entry = Writer::new();
    entry.text(1, SIGNATURE_DEF);
    entry.message(2, any);
    let mut writer = Writer::new();
    writer.message(1, spec_writer(name, version, ""));
    writer.message(2, entry);
    writer.finish()
}

/// Writes a ModelSpec.
pub fn spec_writer(name: &str, version: Option<i64>, signature_name: &str) -> Writer {
    let mut spec = Writer::new();
    spec.text(1, name);
    if let Some(version) = version {
        let mut wrapper = Writer::new();
        if version != 0 {
            wrapper.varint(1, version as u64);
        }
        spec.message(2, wrapper);
    }
    spec.text(3, signature_name);
    spec
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::proto::tensorflow::serving::input::Kind;
    use crate::proto::tensorflow::{Example, Features};
    use crate::tensor::BytesElements;

    fn spec(name: &str, choice: Option<VersionChoice>, signature: &str) -> messages::ModelSpec {
        messages::ModelSpec { name: name.to_owned(), version_choice: choice, signature_name: signature.to_owned() }
    }

    fn example(name: &str) -> Example {
        Example { features: Some(Features { feature: [(name.to_owned(), Default::default())].into() }) }
    }

    fn task(name: &str, signature: &str, method_name: &str) -> messages::InferenceTask {
        messages::InferenceTask { model_spec: Some(spec(name, None, signature)), method_name: method_name.to_owned() }
    }

    #[test]
    fn model_specs_are_read_as_they_are_written() {
        for (choice, version, label) in [
            (None, None, None),
            (Some(VersionChoice::Version(7)), Some("7"), None),
            (Some(VersionChoice::Version(0)), Some("0"), None),
            (Some(VersionChoice::VersionLabel("stable".to_owned())), None, Some("stable")),
            (Some(VersionChoice::VersionLabel(String::new())), None, None),
        ] {
            let message = spec("m", choice.clone(), "s");
            let read = Spec::decode(Some(&message.encode_to_vec())).unwrap();
            assert_eq!(read, Spec::from_message(Some(message.clone())).unwrap());
            assert_eq!((read.model.name.as_str(), read.signature_name.as_str()), ("m", "s"));
            assert_eq!((read.model.version.as_deref(), read.model.label.as_deref()), (version, label));
            if let Some(VersionChoice::Version(version)) = choice {
                let written = spec_writer("m", Some(version), "s").finish().concat();
                assert_eq!(messages::ModelSpec::decode(&written[..]).unwrap(), message);
            }
        }
        assert_eq!(Spec::decode(None).unwrap_err().message, "Missing ModelSpec");
    }

    #[test]
    fn examples_are_passed_on_with_their_context() {
        let examples = vec![example("a"), example("b")];
        for (kind, expected) in [
            (Kind::ExampleList(messages::ExampleList { examples: examples.clone() }), [vec!["a"], vec!["b"]]),
            (
                Kind::ExampleListWithContext(messages::ExampleListWithContext {
                    examples: examples.clone(),
                    context: Some(example("c")),
                }),
                [vec!["a", "c"], vec!["b", "c"]],
            ),
        ] {
            let request = messages::ClassificationRequest {
                model_spec: Some(spec("m", None, "")),
                input: Some(messages::Input { kind: Some(kind) }),
            };
            let (read, examples) = read_request(&request.encode_to_vec(), 1000).unwrap();
            assert_eq!(read.model, ModelRef::latest("m"));
            let tensor = examples.to_tensor("inputs");
            let names: Vec<Vec<String>> = BytesElements::new(&tensor.data)
                .map(|element| Example::decode(element.unwrap()).unwrap().features.unwrap())
                .map(|features| features.feature.into_keys().collect())
                .collect();
            assert_eq!(names, expected);
        }
    }

    #[test]
    fn tasks_must_be_of_one_model_and_differ() {
        for (tasks, expected) in [
            (vec![task("m", "a", CLASSIFY), task("m", "b", REGRESS)], Ok(2)),
            (vec![], Err("has no tasks")),
            (vec![task("m", "a", CLASSIFY), task("n", "b", REGRESS)], Err("the same model name")),
            (vec![task("m", "a", CLASSIFY), task("m", "a", CLASSIFY)], Err("Duplicate evaluation of signature: a")),
            (vec![task("m", "a", "tensorflow/serving/predict")], Err("Unsupported signature method_name")),
        ] {
            let request = messages::MultiInferenceRequest { tasks, input: None };
            match (read_tasks(&request.encode_to_vec(), 1000), expected) {
                (Ok((tasks, _)), Ok(count)) => assert_eq!(tasks.len(), count),
                (Err(error), Err(part)) => assert!(error.message.contains(part), "{}", error.message),
                (result, expected) => panic!("{result:?} instead of {expected:?}"),
            }
        }
    }

    #[test]
    fn metadata_holds_the_signatures_as_they_are() {
        let map = Bytes::from_static(b"\x0a\x05\x0a\x01s\x12\x00");
        let response = metadata_response("m", Some(3), map.clone()).concat();
        let response = messages::GetModelMetadataResponse::decode(&response[..]).unwrap();
        assert_eq!(response.model_spec, Some(spec("m", Some(VersionChoice::Version(3)), "")));
        let any = &response.metadata[SIGNATURE_DEF];
        assert_eq!((any.type_url.as_str(), &any.value[..]), (SIGNATURE_DEF_MAP, &map[..]));
    }
}
