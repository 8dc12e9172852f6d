//! Server reflection (v1, and v1alpha whose messages are the same): which services and messages this server has.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use bytes::Bytes;
use futures_util::StreamExt;
use prost::Message;
use prost_types::{DescriptorProto, EnumDescriptorProto, FileDescriptorProto, FileDescriptorSet};

use super::{Answer, Call, decode, framed, unknown_method};
use crate::mt1::DaemonError;
use crate::proto::DESCRIPTORS;
use crate::proto::reflection::server_reflection_request::MessageRequest;
use crate::proto::reflection::server_reflection_response::MessageResponse;
use crate::proto::reflection::{
    ErrorResponse, FileDescriptorResponse, ListServiceResponse, ServerReflectionRequest, ServerReflectionResponse,
    ServiceResponse,
};

/// gRPC's numbers of the two codes that this protocol puts into its replies.
const NOT_FOUND: i32 = 5;
const UNIMPLEMENTED: i32 = 12;

/// Answers a call of `grpc.reflection.v1.ServerReflection`.
pub fn answer(call: Call, method: &str) -> Result<Answer, DaemonError> {
    if method != "ServerReflectionInfo" {
        return Err(unknown_method("grpc.reflection.v1.ServerReflection", method));
    }
    let compression = call.reply_compression();
    let replies = call.messages().then(move |message| async move {
        let (message, _held) = message?;
        let request: ServerReflectionRequest = decode(&message)?;
        framed(vec![FILES.reply(request).encode_to_vec().into()], compression).await
    });
    Ok(Answer::Stream(Box::pin(replies)))
}

static FILES: LazyLock<Files> = LazyLock::new(|| Files::new(DESCRIPTORS));

/// The files that describe this server's services, and where each symbol is defined.
struct Files {
    by_name: BTreeMap<String, File>,
    by_symbol: BTreeMap<String, String>,
    services: BTreeSet<String>,
}

struct File {
    serialized: Bytes,
    imports: Vec<String>,
}

impl Files {
    fn new(descriptors: &[u8]) -> Self {
        let mut files = Files { by_name: BTreeMap::new(), by_symbol: BTreeMap::new(), services: BTreeSet::new() };
        // The set was made when this program was built; tests show that it can be read.
        let set = FileDescriptorSet::decode(descriptors).unwrap_or_default();
        for file in set.file {
            files.add(&file);
        }
        files
    }

    fn add(&mut self, file: &FileDescriptorProto) {
        let (name, package) = (file.name().to_owned(), file.package());
        let mut symbols = Vec::new();
        for service in &file.service {
            let full = join(package, service.name());
            symbols.extend(service.method.iter().map(|method| join(&full, method.name())));
            self.services.insert(full.clone());
            symbols.push(full);
        }
        add_types(&mut symbols, package, &file.message_type, &file.enum_type);
        for symbol in symbols {
            self.by_symbol.insert(symbol, name.clone());
        }
        let serialized = Bytes::from(file.encode_to_vec());
        self.by_name.insert(name, File { serialized, imports: file.dependency.clone() });
    }

    fn reply(&self, request: ServerReflectionRequest) -> ServerReflectionResponse {
        let response = match &request.message_request {
            Some(MessageRequest::ListServices(_)) => {
                let service = self.services.iter().map(|name| ServiceResponse { name: name.clone() }).collect();
                MessageResponse::ListServicesResponse(ListServiceResponse { service })
            }
            Some(MessageRequest::FileByFilename(name)) => self.with_imports(name, name),
            Some(MessageRequest::FileContainingSymbol(symbol)) => match self.by_symbol.get(symbol) {
                Some(name) => self.with_imports(name, symbol),
                None => error(NOT_FOUND, format!("this server has no {symbol}")),
            },
            Some(MessageRequest::FileContainingExtension(_) | MessageRequest::AllExtensionNumbersOfType(_)) => {
                error(NOT_FOUND, "messages of this server have no extensions".to_owned())
            }
            None => error(UNIMPLEMENTED, "this server does not know the request".to_owned()),
        };
        ServerReflectionResponse {
            valid_host: request.host.clone(),
            original_request: Some(request),
            message_response: Some(response),
        }
    }

    /// Returns a file and those that it imports, directly or not, itself first.
    fn with_imports(&self, name: &str, wanted: &str) -> MessageResponse {
        if !self.by_name.contains_key(name) {
            return error(NOT_FOUND, format!("this server has no {wanted}"));
        }
        let mut names = vec![name];
        let mut index = 0;
        while index < names.len() {
            if let Some(file) = self.by_name.get(names[index]) {
                for import in &file.imports {
                    if !names.contains(&import.as_str()) {
                        names.push(import);
                    }
                }
            }
            index += 1;
        }
        let files = names.iter().filter_map(|name| self.by_name.get(*name));
        let file_descriptor_proto = files.map(|file| file.serialized.clone()).collect();
        MessageResponse::FileDescriptorResponse(FileDescriptorResponse { file_descriptor_proto })
    }
}

fn add_types(symbols: &mut Vec<String>, scope: &str, types: &[DescriptorProto], enums: &[EnumDescriptorProto]) {
    for message in types {
        let full = join(scope, message.name());
        symbols.extend(message.field.iter().map(|field| join(&full, field.name())));
        add_types(symbols, &full, &message.nested_type, &message.enum_type);
        symbols.push(full);
    }
    for enumeration in enums {
        let full = join(scope, enumeration.name());
        // The values of an enumeration are siblings of it.
        symbols.extend(enumeration.value.iter().map(|value| join(scope, value.name())));
        symbols.push(full);
    }
}

fn join(scope: &str, name: &str) -> String {
    if scope.is_empty() { name.to_owned() } else { format!("{scope}.{name}") }
}

fn error(error_code: i32, error_message: String) -> MessageResponse {
    MessageResponse::ErrorResponse(ErrorResponse { error_code, error_message })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(request: MessageRequest) -> MessageResponse {
        let request = ServerReflectionRequest { host: "h".to_owned(), message_request: Some(request) };
        FILES.reply(request).message_response.unwrap()
    }

    fn file_names(response: MessageResponse) -> Vec<String> {
        let MessageResponse::FileDescriptorResponse(response) = response else {
            panic!("{response:?}");
        };
        let files = response.file_descriptor_proto.iter();
        files.map(|file| FileDescriptorProto::decode(&file[..]).unwrap().name().to_owned()).collect()
    }

    #[test]
    fn all_services_are_listed() {
        let MessageResponse::ListServicesResponse(list) = ask(MessageRequest::ListServices(String::new())) else {
            panic!("no list");
        };
        let names: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
        assert_eq!(
            names,
            [
                "grpc.health.v1.Health",
                "grpc.reflection.v1.ServerReflection",
                "inference.GRPCInferenceService",
                "tensorflow.serving.ModelService",
                "tensorflow.serving.PredictionService",
            ]
        );
    }

    #[test]
    fn a_symbol_comes_with_everything_that_its_file_imports() {
        for symbol in [
            "tensorflow.serving.PredictionService",
            "tensorflow.serving.PredictionService.Predict",
            "tensorflow.serving.ModelVersionStatus.State",
            "tensorflow.serving.ModelVersionStatus.AVAILABLE",
            "tensorflow.serving.PredictRequest.inputs",
        ] {
            let files = file_names(ask(MessageRequest::FileContainingSymbol(symbol.to_owned())));
            assert_eq!(files[0], "tensorflow_serving.proto", "{symbol}");
            for import in ["tensorflow.proto", "tensorflow_error.proto", "google/protobuf/any.proto"] {
                assert!(files.iter().any(|file| file == import), "{import}");
            }
        }
        let files = file_names(ask(MessageRequest::FileByFilename("health.proto".to_owned())));
        assert_eq!(files, ["health.proto"]);
    }

    #[test]
    fn what_does_not_exist_is_not_found() {
        for request in [
            MessageRequest::FileContainingSymbol("no.Such".to_owned()),
            MessageRequest::FileByFilename("no.proto".to_owned()),
            MessageRequest::AllExtensionNumbersOfType("inference.ModelConfig".to_owned()),
        ] {
            let MessageResponse::ErrorResponse(error) = ask(request) else {
                panic!("no error");
            };
            assert_eq!(error.error_code, NOT_FOUND);
        }
    }
}
