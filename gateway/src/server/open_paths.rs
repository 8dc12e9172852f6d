//! What is answered without a credential: whether the server lives and is ready, and the page without its data.

use ::http::Method;

use crate::statistics::Interface;

/// Whether a request needs no credential.
///
/// Paths are compared as they are sent. Other ways to write them, such as with `%2F` or a slash at the end, need one.
pub fn is_open(interface: Interface, method: &Method, path: &str) -> bool {
    let reads = matches!(*method, Method::GET | Method::HEAD);
    match interface {
        Interface::OpenInferenceHttp => reads && matches!(path, "/v2/health/live" | "/v2/health/ready"),
        Interface::OperationsHttp => reads && matches!(path, "/" | "/healthz" | "/readyz"),
        Interface::OpenInferenceGrpc => {
            matches!(path, "/inference.GRPCInferenceService/ServerLive" | "/inference.GRPCInferenceService/ServerReady")
        }
        Interface::OperationsGrpc => matches!(path, "/grpc.health.v1.Health/Check" | "/grpc.health.v1.Health/Watch"),
        Interface::TensorflowServingRest | Interface::TensorflowServingGrpc => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_liveness_readiness_and_the_page_are_open() {
        let get = Method::GET;
        for (interface, path, expected) in [
            (Interface::OperationsHttp, "/", true),
            (Interface::OperationsHttp, "/healthz", true),
            (Interface::OperationsHttp, "/readyz", true),
            (Interface::OperationsHttp, "/metrics", false),
            (Interface::OperationsHttp, "/status.json", false),
            (Interface::OperationsHttp, "/healthz/", false),
            (Interface::OperationsHttp, "/healthz/../metrics", false),
            (Interface::OperationsHttp, "//healthz", false),
            (Interface::OperationsHttp, "/nosuch", false),
            (Interface::OpenInferenceHttp, "/v2/health/live", true),
            (Interface::OpenInferenceHttp, "/v2/health/ready", true),
            (Interface::OpenInferenceHttp, "/v2/health%2Flive", false),
            (Interface::OpenInferenceHttp, "/v2/health/live/../../models/m", false),
            (Interface::OpenInferenceHttp, "/v2", false),
            (Interface::OpenInferenceHttp, "/v2/models/m/ready", false),
            (Interface::TensorflowServingRest, "/v1/models/m", false),
            (Interface::OpenInferenceGrpc, "/inference.GRPCInferenceService/ServerLive", true),
            (Interface::OpenInferenceGrpc, "/inference.GRPCInferenceService/ServerReady", true),
            (Interface::OpenInferenceGrpc, "/inference.GRPCInferenceService/ModelReady", false),
            (Interface::OpenInferenceGrpc, "/inference.GRPCInferenceService/ModelInfer", false),
            (Interface::TensorflowServingGrpc, "/tensorflow.serving.PredictionService/Predict", false),
            (Interface::OperationsGrpc, "/grpc.health.v1.Health/Check", true),
            (Interface::OperationsGrpc, "/grpc.health.v1.Health/Watch", true),
            (Interface::OperationsGrpc, "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", false),
            (Interface::OperationsGrpc, "/v2/health/live", false),
        ] {
            assert_eq!(is_open(interface, &get, path), expected, "{interface:?} {path}");
        }
        assert!(is_open(Interface::OperationsHttp, &Method::HEAD, "/"));
        assert!(!is_open(Interface::OperationsHttp, &Method::POST, "/"));
        assert!(!is_open(Interface::OpenInferenceHttp, &Method::POST, "/v2/health/live"));
    }
}
