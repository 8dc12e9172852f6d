//! What the daemon reports of itself and of models, as messages of `inference.GRPCInferenceService`.

use serde_json::Value;

use crate::open_inference::refusals::extensions;
use crate::open_inference::repository::Entry;
use crate::proto::inference as messages;
use crate::proto::inference::model_metadata_response::TensorMetadata;
use crate::proto::inference::model_version_policy::{All, Latest, PolicyChoice, Specific};
use crate::proto::inference::repository_index_response::ModelIndex;

/// An extension of HTTP: over gRPC all tensors may be binary.
const OF_HTTP: &str = "binary_tensor_data";

pub fn server_metadata(reply: &Value) -> messages::ServerMetadataResponse {
    messages::ServerMetadataResponse {
        name: text(&reply["name"]),
        version: text(&reply["version"]),
        extensions: extensions(reply).filter(|&name| name != OF_HTTP).map(str::to_owned).collect(),
    }
}

pub fn model_metadata(reply: &Value) -> messages::ModelMetadataResponse {
    let tensor = |tensor: &Value| TensorMetadata {
        name: text(&tensor["name"]),
        datatype: text(&tensor["datatype"]),
        shape: integers(&tensor["shape"]),
    };
    messages::ModelMetadataResponse {
        name: text(&reply["name"]),
        versions: list(&reply["versions"]).map(text).collect(),
        platform: text(&reply["platform"]),
        inputs: list(&reply["inputs"]).map(tensor).collect(),
        outputs: list(&reply["outputs"]).map(tensor).collect(),
    }
}

pub fn model_config(reply: &Value) -> messages::ModelConfigResponse {
    let input = |tensor: &Value| messages::ModelInput {
        name: text(&tensor["name"]),
        data_type: data_type(&tensor["data_type"]),
        dims: integers(&tensor["dims"]),
        optional: tensor["optional"] == true,
    };
    let output = |tensor: &Value| messages::ModelOutput {
        name: text(&tensor["name"]),
        data_type: data_type(&tensor["data_type"]),
        dims: integers(&tensor["dims"]),
    };
    let max_batch_size = i32::try_from(reply["max_batch_size"].as_i64().unwrap_or(0)).unwrap_or(i32::MAX);
    let batching = messages::model_config::SchedulingChoice::DynamicBatching(messages::ModelDynamicBatching::default());
    messages::ModelConfigResponse {
        config: Some(messages::ModelConfig {
            name: text(&reply["name"]),
            platform: text(&reply["platform"]),
            backend: text(&reply["backend"]),
            version_policy: version_policy(&reply["version_policy"]),
            max_batch_size,
            input: list(&reply["input"]).map(input).collect(),
            output: list(&reply["output"]).map(output).collect(),
            scheduling_choice: (max_batch_size > 0).then_some(batching),
        }),
    }
}

fn version_policy(policy: &Value) -> Option<messages::ModelVersionPolicy> {
    let policy_choice = if let Some(latest) = policy.get("latest") {
        let count = latest["num_versions"].as_u64().and_then(|count| u32::try_from(count).ok());
        PolicyChoice::Latest(Latest { num_versions: count.unwrap_or(1) })
    } else if let Some(specific) = policy.get("specific") {
        PolicyChoice::Specific(Specific { versions: integers(&specific["versions"]) })
    } else if policy.get("all").is_some() {
        PolicyChoice::All(All {})
    } else {
        return None;
    };
    Some(messages::ModelVersionPolicy { policy_choice: Some(policy_choice) })
}

pub fn statistics(reply: &Value) -> messages::ModelStatisticsResponse {
    let model = |model: &Value| messages::ModelStatistics {
        name: text(&model["name"]),
        version: text(&model["version"]),
        last_inference: number(&model["last_inference"]),
        inference_count: number(&model["inference_count"]),
        execution_count: number(&model["execution_count"]),
        inference_stats: Some(inference_stats(&model["inference_stats"])),
    };
    messages::ModelStatisticsResponse { model_stats: list(&reply["model_stats"]).map(model).collect() }
}

fn inference_stats(stats: &Value) -> messages::InferStatistics {
    let duration = |name: &str| {
        let duration = &stats[name];
        Some(messages::StatisticDuration { count: number(&duration["count"]), ns: number(&duration["ns"]) })
    };
    messages::InferStatistics {
        success: duration("success"),
        fail: duration("fail"),
        queue: duration("queue"),
        compute_input: duration("compute_input"),
        compute_infer: duration("compute_infer"),
        compute_output: duration("compute_output"),
        cache_hit: duration("cache_hit"),
        cache_miss: duration("cache_miss"),
    }
}

pub fn repository_index(entries: Vec<Entry>) -> messages::RepositoryIndexResponse {
    let models = entries.into_iter().map(|Entry { name, version, state, reason }| ModelIndex {
        name,
        version,
        state: state.to_owned(),
        reason,
    });
    messages::RepositoryIndexResponse { models: models.collect() }
}

fn data_type(name: &Value) -> i32 {
    let name = name.as_str().unwrap_or_default();
    messages::DataType::from_str_name(name).unwrap_or(messages::DataType::TypeInvalid).into()
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn integers(value: &Value) -> Vec<i64> {
    list(value).filter_map(Value::as_i64).collect()
}

/// A string, or the text of a number.
fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => String::new(),
    }
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_configuration_has_the_types_and_dims_of_its_tensors() {
        let reply = json!({"name": "m", "platform": "p", "backend": "b", "max_batch_size": 8,
            "version_policy": {"latest": {"num_versions": 2}},
            "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [64], "optional": true}],
            "output": [{"name": "y", "data_type": "TYPE_STRING", "dims": [-1]}]});
        let config = model_config(&reply).config.unwrap();
        assert_eq!((config.max_batch_size, config.backend.as_str()), (8, "b"));
        assert_eq!(config.input[0].data_type(), messages::DataType::TypeFp32);
        assert!(config.input[0].optional);
        assert_eq!(config.output[0].data_type(), messages::DataType::TypeString);
        assert_eq!(config.output[0].dims, [-1]);
        let policy = config.version_policy.unwrap().policy_choice;
        assert_eq!(policy, Some(PolicyChoice::Latest(Latest { num_versions: 2 })));
        assert!(config.scheduling_choice.is_some());
        assert!(model_config(&json!({"max_batch_size": 0})).config.unwrap().scheduling_choice.is_none());
    }

    #[test]
    fn statistics_have_all_durations() {
        let reply = json!({"model_stats": [{"name": "m", "version": "1", "last_inference": 5, "inference_count": 3,
            "execution_count": 2, "inference_stats": {"success": {"count": 3, "ns": 17}}}]});
        let model = &statistics(&reply).model_stats[0];
        assert_eq!((model.last_inference, model.inference_count, model.execution_count), (5, 3, 2));
        let stats = model.inference_stats.unwrap();
        assert_eq!(stats.success.unwrap().ns, 17);
        assert_eq!(stats.cache_miss.unwrap().count, 0);
    }
}
