"""The flags of tensorflow_model_server, in sections, with what each does here.

They are those of `tensorflow_serving/model_servers/main.cc`. The texts are the help of `multitower model-server`. This
module imports nothing of multitower: the command line defines its options by it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final


class Kind(Enum):
    """What values a flag has."""

    TEXT = "text"
    INTEGER = "integer"
    FRACTION = "number"
    SWITCH = "true|false"


class Effect(Enum):
    """What a flag does in multitower."""

    USED = "used"
    NONE = "none"
    """It has no counterpart, or asks for what multitower does anyway. The log names it if it asks for anything else."""
    REFUSED = "refused"
    """It promises security that multitower does not have: the start ends."""


@dataclass(frozen=True, slots=True)
class Flag:
    """A flag.

    Attributes:
        name: without the leading dashes.
        kind: what values it has.
        help: what it does here.
        effect: what it does in multitower.
        fulfilled: of a flag without effect: the value that asks for what multitower does anyway, as text; None if no
            value does.
    """

    name: str
    kind: Kind
    help: str
    effect: Effect = Effect.USED
    fulfilled: str | None = None


def _none(name: str, kind: Kind, text: str, fulfilled: str | None = None) -> Flag:
    return Flag(name, kind, text, Effect.NONE, fulfilled)


SECTIONS: Final[dict[str, tuple[Flag, ...]]] = {
    "Addresses": (
        Flag("port", Kind.INTEGER, "The port for gRPC; 0: none. Default: 8500."),
        Flag("rest_api_port", Kind.INTEGER, "The port for HTTP/REST; 0: none. It may equal --port. Default: 0."),
        Flag("grpc_socket_path", Kind.TEXT, "A Unix socket for gRPC, beside --port."),
        Flag(
            "rest_api_timeout_in_ms",
            Kind.INTEGER,
            "The longest time of a request, also over gRPC (`queue.timeout`). Default: 30000.",
        ),
        Flag(
            "ssl_config_file",
            Kind.TEXT,
            "TLS at both ports, as this SSLConfig says: server_key, server_cert, client_verify with custom_ca.",
        ),
        Flag("use_alts_credentials", Kind.SWITCH, "Refused: there is no ALTS.", Effect.REFUSED),
    ),
    "Models": (
        Flag("model_name", Kind.TEXT, "The name of the model at --model_base_path. Default: default."),
        Flag("model_base_path", Kind.TEXT, "The folder with the numbered versions of the model, or one SavedModel."),
        Flag("model_config_file", Kind.TEXT, "A models.config, in place of --model_name and --model_base_path."),
        Flag(
            "model_config_file_poll_wait_seconds",
            Kind.INTEGER,
            "How often --model_config_file is read again; 0: never, but `multitower reload` and SIGHUP read it. A "
            "wrong file is refused as a whole. Default: 0.",
        ),
        Flag(
            "file_system_poll_wait_seconds",
            Kind.INTEGER,
            "How often the models' folders are checked for versions (`watch.interval`); 0: never. A new version is "
            "loaded once its files have not changed for 5 s. Default: 1.",
        ),
        Flag(
            "saved_model_tags",
            Kind.TEXT,
            "The tags of the MetaGraph that is served, separated by commas. Default: the one tagged serve, else the "
            "only one.",
        ),
        _none(
            "allow_version_labels_for_unavailable_models",
            Kind.SWITCH,
            "Always true: a label may name a version that is not served yet.",
            "true",
        ),
        _none("enable_model_warmup", Kind.SWITCH, "Always true; without recorded requests inputs are made up.", "true"),
    ),
    "Batching": (
        Flag(
            "enable_batching",
            Kind.SWITCH,
            "Without the flag, requests share batches of up to 32 rows if the model allows it. false: each request "
            "runs by itself. true: as --batching_parameters_file sets it.",
        ),
        Flag("batching_parameters_file", Kind.TEXT, "Batching parameters for all models; needs --enable_batching."),
        Flag(
            "enable_per_model_batching_parameters",
            Kind.SWITCH,
            "With --enable_batching: the parameters of each model are those in batching_params.pbtxt, in the folder of "
            "its highest version that is served; a model without the file is not batched.",
        ),
    ),
    "Resources": (
        Flag(
            "per_process_gpu_memory_fraction",
            Kind.FRACTION,
            "The share of each GPU's memory that its worker may use; 0: what it needs. Default: 0.",
        ),
        Flag(
            "tensorflow_session_parallelism",
            Kind.INTEGER,
            "Sets both following flags. Default: 0, a fair share of the cores for each worker.",
        ),
        Flag("tensorflow_intra_op_parallelism", Kind.INTEGER, "Threads within one operation, in each worker."),
        Flag("tensorflow_inter_op_parallelism", Kind.INTEGER, "Operations at one time, in each worker."),
    ),
    "Accepted without effect": (
        _none("enable_grpc_healthcheck_service", Kind.SWITCH, "Always true.", "true"),
        _none("enable_profiler", Kind.SWITCH, "There is no profiler service.", "false"),
        _none("enable_serialization_as_tensor_content", Kind.SWITCH, "The gateway chooses the encoding."),
        _none("enable_signature_method_name_check", Kind.SWITCH, "method_name is handled as by default.", "false"),
        _none("flush_filesystem_caches", Kind.SWITCH, "Caches are left to the kernel.", "false"),
        _none("grpc_channel_arguments", Kind.TEXT, "The gateway has limits of its own."),
        _none("grpc_max_threads", Kind.INTEGER, "The gateway runs an event loop, not a thread a request."),
        _none("load_retry_interval_micros", Kind.INTEGER, "See --max_num_load_retries."),
        _none("max_num_load_retries", Kind.INTEGER, "A failed version is loaded again when its files change."),
        _none("mixed_precision", Kind.TEXT, "Set it in the model."),
        _none("monitoring_config_file", Kind.TEXT, "There is no Prometheus endpoint; `multitower status --json`."),
        _none("num_load_threads", Kind.INTEGER, "A worker loads its models one after the other."),
        _none("num_request_iterations_for_warmup", Kind.INTEGER, "The warm-up runs each recorded request once.", "1"),
        _none("num_tflite_interpreters_per_pool", Kind.INTEGER, "TensorFlow Lite is not supported."),
        _none("num_tflite_pools", Kind.INTEGER, "TensorFlow Lite is not supported."),
        _none("num_unload_threads", Kind.INTEGER, "A version ends with its worker's process."),
        _none("platform_config_file", Kind.TEXT, "Only the platform tensorflow is served."),
        _none("prefer_tflite_model", Kind.SWITCH, "TensorFlow Lite is not supported.", "false"),
        _none("remove_unused_fields_from_bundle_metagraph", Kind.SWITCH, "The MetaGraph is not kept in memory."),
        _none("rest_api_enable_cors_support", Kind.SWITCH, "Replies have no CORS headers.", "false"),
        _none("rest_api_num_threads", Kind.INTEGER, "The gateway runs an event loop, not a thread a request."),
        _none("skip_initialize_tpu", Kind.SWITCH, "TPUs are not supported."),
        _none("tensorflow_session_config_file", Kind.TEXT, "Sessions are configured by multitower."),
        _none("thread_pool_factory_config_file", Kind.TEXT, "Each worker has TensorFlow's own threads."),
        _none("xla_cpu_compilation_enabled", Kind.SWITCH, "XLA is left as TensorFlow has it."),
        _none("xla_gpu_compilation_enabled", Kind.SWITCH, "XLA is left as TensorFlow has it."),
    ),
}
"""In the order of the help."""

Values = dict[str, str | int | float | bool | None]
"""The value of each flag by its name; None for one that was not given."""


def all_flags() -> Iterator[Flag]:
    """All flags, in the order of the help."""
    for section in SECTIONS.values():
        yield from section


def without_effect(values: Values) -> list[str]:
    """The flags that were given, ask for something, and have no counterpart, as `--name=value`."""
    found = []
    for flag in all_flags():
        value = values.get(flag.name)
        if flag.effect is not Effect.NONE or value is None or value == "":
            continue
        text = str(value).lower() if isinstance(value, bool) else str(value)
        if text != flag.fulfilled:
            found.append(f"--{flag.name}={text}")
    return found
