//! `inference.GRPCInferenceService`: the Open Inference Protocol over gRPC with Triton's extensions.

mod contents;
mod infer_request;
mod infer_response;
mod models;
mod parameter;

use bytes::Bytes;
use futures_util::StreamExt;
use serde_json::{Value, json};

use infer_request::{InferMessage, decode as decode_request};

use super::{refusals, repository};
use crate::budget::Held;
use crate::context::Context;
use crate::grpc::wire::Writer;
use crate::grpc::{Answer, Call, Deadline, decode, encode, framed, unknown_method};
use crate::mt1::{Code, DaemonError};
use crate::proto::inference as messages;
use crate::threads::in_thread;
use crate::trace::Trace;

const SERVICE: &str = "inference.GRPCInferenceService";

/// Requests of one stream that run at the same time. Their replies keep the order of the requests.
const STREAM_CONCURRENCY: usize = 16;

/// Answers a call of a method of this service.
pub async fn answer(call: Call, method: &str) -> Result<Answer, DaemonError> {
    match method {
        "ModelInfer" => model_infer(call).await,
        "ModelStreamInfer" => Ok(model_stream_infer(call)),
        // What is called seldom has its future on the heap, so that the others' stays small.
        _ => Box::pin(query(call, method)).await,
    }
}

async fn model_infer(call: Call) -> Result<Answer, DaemonError> {
    let (context, deadline, held) = (call.context.clone(), call.deadline(), call.held());
    let message = call.message().await?;
    let InferMessage { id, mut request } = decode_infer(message).await?;
    held.cover(request.bytes())?;
    request.timeout = deadline.timeout(request.timeout)?;
    let reply = context.daemon.infer(request).await?;
    Ok(Answer::Message(infer_response::encode(reply, &id).finish()))
}

async fn decode_infer(message: Bytes) -> Result<InferMessage, DaemonError> {
    if infer_request::is_slow(&message) {
        return in_thread(move || decode_request(&message)).await;
    }
    decode_request(&message)
}

/// Answers each request of a stream with one message, an error within it included.
fn model_stream_infer(call: Call) -> Answer {
    let (context, deadline, compression) = (call.context.clone(), call.deadline(), call.reply_compression());
    let trace = Trace::current();
    let replies = call
        .messages()
        .map(move |message| {
            let (context, trace) = (context.clone(), trace.clone());
            async move {
                let (message, held) = message?;
                let reply = stream_reply(&context, deadline, message, &held);
                // The stream is read when the call has been answered, outside of its trace.
                let reply = match trace {
                    None => reply.await,
                    Some(trace) => Box::pin(trace.scope(reply)).await,
                };
                let mut reply = framed(reply, compression).await?;
                held.count_answers(&mut reply);
                Ok(reply)
            }
        })
        .buffered(STREAM_CONCURRENCY);
    Answer::Stream(Box::pin(replies))
}

async fn stream_reply(context: &Context, deadline: Deadline, message: Bytes, held: &Held) -> Vec<Bytes> {
    let mut id = String::new();
    let result = async {
        let InferMessage { id: stated, mut request } = decode_infer(message).await?;
        id = stated;
        held.cover(request.bytes())?;
        request.timeout = deadline.timeout(request.timeout)?;
        context.daemon.infer(request).await
    };
    let result = result.await;
    let mut writer = Writer::new();
    match result {
        Ok(reply) => writer.message(2, infer_response::encode_final(reply, &id)),
        Err(error) => {
            writer.text(1, &error.message);
            // The id says which request has failed.
            let mut response = Writer::new();
            response.text(3, &id);
            writer.message(2, response);
        }
    }
    writer.finish()
}

/// Answers a method that does not run a model.
async fn query(call: Call, method: &str) -> Result<Answer, DaemonError> {
    refuse_unsupported(method)?;
    let (context, deadline) = (call.context.clone(), call.deadline());
    let message = call.message().await?;
    let daemon = &context.daemon;
    let answer = async {
        Ok(match method {
            "ServerLive" => encode(&messages::ServerLiveResponse { live: is_live(&context).await }),
            "ServerReady" => {
                let ready = match daemon.call("MT1:server_ready", json!({})).await {
                    Ok(reply) => reply["ready"] == true,
                    Err(_) => false,
                };
                encode(&messages::ServerReadyResponse { ready })
            }
            "ServerMetadata" => {
                let reply = daemon.call("MT1:server_metadata", json!({})).await?;
                encode(&models::server_metadata(&reply))
            }
            "ModelReady" => {
                let request: messages::ModelReadyRequest = decode(&message)?;
                let ready = match daemon.call("MT1:model_ready", model(&request.name, &request.version)).await {
                    Ok(reply) => reply["ready"] == true,
                    // As Triton answers for a model or version that it does not have.
                    Err(error) if error.code == Code::NotFound => false,
                    Err(error) => return Err(error),
                };
                encode(&messages::ModelReadyResponse { ready })
            }
            "ModelMetadata" => {
                let request: messages::ModelMetadataRequest = decode(&message)?;
                let reply = daemon.call("MT1:model_metadata", model(&request.name, &request.version)).await?;
                encode(&models::model_metadata(&reply))
            }
            "ModelConfig" => {
                let request: messages::ModelConfigRequest = decode(&message)?;
                let reply = daemon.call("MT1:model_config", model(&request.name, &request.version)).await?;
                encode(&models::model_config(&reply))
            }
            "ModelStatistics" => {
                let request: messages::ModelStatisticsRequest = decode(&message)?;
                let header = if request.name.is_empty() { json!({}) } else { model(&request.name, &request.version) };
                encode(&models::statistics(&daemon.call("MT1:statistics", header).await?))
            }
            "RepositoryIndex" => {
                let request: messages::RepositoryIndexRequest = decode(&message)?;
                encode(&models::repository_index(repository::index(&context, request.ready).await?))
            }
            "RepositoryModelLoad" => {
                let request: messages::RepositoryModelLoadRequest = decode(&message)?;
                repository::check_allowed(&context)?;
                request.parameters.keys().try_for_each(|name| refusals::check_load_parameter(name))?;
                repository::load(&context, &request.model_name).await?;
                encode(&messages::RepositoryModelLoadResponse {})
            }
            "RepositoryModelUnload" => {
                let request: messages::RepositoryModelUnloadRequest = decode(&message)?;
                repository::check_allowed(&context)?;
                request.parameters.keys().try_for_each(|name| refusals::check_load_parameter(name))?;
                repository::unload(&context, &request.model_name).await?;
                encode(&messages::RepositoryModelUnloadResponse {})
            }
            _ => return Err(unknown_method(SERVICE, method)),
        })
    };
    deadline.within(answer).await
}

/// Refuses methods before their messages are read.
fn refuse_unsupported(method: &str) -> Result<(), DaemonError> {
    match method {
        "SystemSharedMemoryStatus"
        | "SystemSharedMemoryRegister"
        | "SystemSharedMemoryUnregister"
        | "CudaSharedMemoryStatus"
        | "CudaSharedMemoryRegister"
        | "CudaSharedMemoryUnregister" => Err(refusals::shared_memory()),
        "TraceSetting" | "LogSettings" => Err(refusals::trace_and_log()),
        _ => Ok(()),
    }
}

/// Whether the daemon answers.
async fn is_live(context: &Context) -> bool {
    match context.daemon.call("MT1:server_live", json!({})).await {
        Ok(reply) => reply["live"] == true,
        Err(_) => false,
    }
}

fn model(name: &str, version: &str) -> Value {
    json!({"model_name": name, "model_version": version})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_that_are_not_supported_are_refused() {
        for method in ["SystemSharedMemoryRegister", "CudaSharedMemoryStatus", "TraceSetting", "LogSettings"] {
            let error = refuse_unsupported(method).unwrap_err();
            assert_eq!(error.code, Code::Unimplemented, "{method}");
        }
        assert_eq!(refuse_unsupported("ModelReady"), Ok(()));
    }
}
