"""The configuration that flags of tensorflow_model_server mean: made in memory by the converter, again at a reload."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from multitower.supervisor.config.config import Config
from multitower.supervisor.config.loading import load, load_model
from multitower.supervisor.config.source import ConfigError, Position, Problem
from multitower.supervisor.config.units import format_duration
from multitower.supervisor.config.value_syntax import is_loopback
from multitower.tools.convert import yaml_text
from multitower.tools.convert.reading import read_message
from multitower.tools.convert.serving import Conversion, FlagSettings, convert
from multitower.tools.convert.text_format import Field, Message
from multitower.tools.model_server.flags import Values
from multitower.tools.model_server.ssl_config import SslConfig

MAX_PORT: Final = 65535
MAX_THREADS: Final = 1024

DEFAULTS: Final[Values] = {
    "port": 8500,
    "rest_api_port": 0,
    "rest_api_timeout_in_ms": 30_000,
    "model_name": "default",
    "file_system_poll_wait_seconds": 1,
    "model_config_file_poll_wait_seconds": 0,
}
"""Those of tensorflow_model_server, of the flags that have an effect and another default than empty or 0."""


class FlagError(Exception):
    """Flags cannot be used, or not together."""


class ModelServer:
    """What flags of tensorflow_model_server ask for.

    Args:
        values: the flags that were given.
        host: the address for both ports: a name, or an IP address without brackets.
        insecure: whether other machines may reach it.
        devices: the value of `devices`, as YAML: `all`, or `{cpu: N}`.
        listen: the endpoint for multitower's own clients.
        folder: the folder that relative paths start at.

    Attributes:
        path: the file of --model_config_file; without that flag, a name that messages contain in place of a file's.
        models_file: the file of --model_config_file, or None.
        poll_s: seconds from one look at that file to the next; 0 for no look.

    Raises:
        FlagError: a flag promises security that there is not, has an impossible value, or contradicts another; or
            other machines can reach the host, and that is not allowed.
    """

    def __init__(
        self, values: Values, *, host: str, insecure: bool, devices: str, listen: str, folder: Path | None = None
    ) -> None:
        folder = folder or Path.cwd()
        self._values = values
        self._folder = folder
        self._host = f"[{host}]" if ":" in host else host
        self._insecure = insecure
        self._devices = devices
        self._listen = listen
        _check(values)
        if not insecure and not is_loopback(host):
            raise FlagError(
                f"--host={host} can be reached from other machines, which may do everything without a credential; use "
                "127.0.0.1, or give --insecure to allow it"
            )
        file = self._text("model_config_file")
        self.models_file = folder / file if file else None
        self.path = self.models_file or folder / "(flags of model-server)"
        ssl_config = self._text("ssl_config_file")
        self._ssl_config = SslConfig(folder / ssl_config) if ssl_config else None
        self.poll_s = self._number("model_config_file_poll_wait_seconds") if file else 0

    def _text(self, name: str) -> str:
        return str(self._values.get(name) or DEFAULTS.get(name) or "")

    def _number(self, name: str) -> int:
        value = self._values.get(name)
        return int(value if value is not None else DEFAULTS.get(name) or 0)

    def _grpc_addresses(self) -> list[str]:
        port, path = self._number("port"), self._text("grpc_socket_path")
        addresses = [f"{self._host}:{port}"] if port else []
        return [*addresses, f"unix:{self._folder / path}"] if path else addresses

    def _http_address(self) -> str | None:
        port = self._number("rest_api_port")
        return f"{self._host}:{port}" if port else None

    def convert(self) -> Conversion:
        """Reads the files and converts them.

        Raises:
            ConfigError: a file cannot be read, or no model in it can be served.
        """
        batching_file = self._text("batching_parameters_file")
        file = self.models_file
        conversion = convert(
            read_message(file) if file is not None else self._single_model(),
            read_message(self._folder / batching_file) if batching_file else None,
            models_file=str(file or "--model_base_path"),
            batching_file=batching_file,
            flags=self._flag_settings(),
        )
        if not conversion.models:
            notes = "; ".join(note.text for note in conversion.notes) or "it names none"
            raise ConfigError([Problem(Position(str(self.path)), (), f"no model can be served: {notes}")])
        return conversion

    def load(self, conversion: Conversion, model: str | None = None) -> Config:
        """Checks a conversion as a configuration. Variables of the environment override it, as in `serve`.

        Args:
            conversion: the conversion.
            model: the model whose section is wanted; None for all.

        Raises:
            UnknownModelError: there is no such model.
            ConfigError: the configuration is wrong.
        """
        if model is not None:
            return load_model(self.path, model, text=conversion.yaml, strict=False)
        return load(self.path, text=conversion.yaml, strict=False)

    def read(self, model: str | None = None) -> Config:
        """Reads the files again; see `load`."""
        return self.load(self.convert(), model)

    def _single_model(self) -> Message:
        """The `ModelServerConfig` of one model, as tensorflow_model_server makes it."""
        fields = {
            "name": self._text("model_name"),
            "base_path": self._text("model_base_path"),
            "model_platform": "tensorflow",
        }
        config = Message(tuple(Field(name, value, 1) for name, value in fields.items()))
        return Message((Field("model_config_list", Message((Field("config", config, 1),)), 1),))

    def _flag_settings(self) -> FlagSettings:
        return FlagSettings(
            keys=tuple(self._keys()),
            folder=self._folder,
            timeout_s=self._number("rest_api_timeout_in_ms") / 1000,
            tags=tuple(filter(None, self._text("saved_model_tags").split(","))),
            batched=self._values.get("enable_batching") is not False,
            model_batching=bool(
                self._values.get("enable_batching") and self._values.get("enable_per_model_batching_parameters")
            ),
        )

    def _keys(self) -> Iterator[str]:
        """The lines of the configuration above its models."""
        if self._insecure:
            yield "insecure: true"
        yield f"listen: [{yaml_text.quoted(self._listen)}]"
        yield "gateway:"
        http, grpc = self._http_address(), self._grpc_addresses()
        if http is not None:
            yield f"  http: {yaml_text.quoted(http)}"
        if grpc:
            yield f"  grpc: [{', '.join(map(yaml_text.quoted, grpc))}]"
        if self._ssl_config is not None:
            yield "  tls:"
            yield from self._ssl_config.keys()
        yield f"devices: {self._devices}"
        fraction = float(self._values.get("per_process_gpu_memory_fraction") or 0)
        if fraction and self._devices == "all":  # CPUs have no memory of their own
            yield f"memory: {round(100 * fraction, 3):g}%"
        both = self._number("tensorflow_session_parallelism")
        threads = {key: self._number(f"tensorflow_{key}_parallelism") or both for key in ("intra_op", "inter_op")}
        if any(threads.values()):
            yield f"threads: {{{', '.join(f'{key}: {count}' for key, count in threads.items() if count)}}}"
        yield f"watch: {{interval: {format_duration(max(self._number('file_system_poll_wait_seconds'), 0))}}}"


def _check(values: Values) -> None:
    """Checks flags by themselves and against each other.

    Raises:
        FlagError: the first mistake.
    """
    if values.get("use_alts_credentials"):
        raise FlagError("--use_alts_credentials promises ALTS, which is not there: remove the flag")
    if not values.get("model_config_file") and not values.get("model_base_path"):
        raise FlagError("--model_base_path or --model_config_file is needed: which model is to be served?")
    if values.get("batching_parameters_file") and not values.get("enable_batching"):
        raise FlagError("--batching_parameters_file needs --enable_batching")
    parallelism = [f"tensorflow_{kind}_parallelism" for kind in ("session", "intra_op", "inter_op")]
    if all(values.get(name) for name in parallelism):
        raise FlagError(
            "--tensorflow_session_parallelism sets both other flags: give either it, or "
            "--tensorflow_intra_op_parallelism and --tensorflow_inter_op_parallelism"
        )
    limits = {
        **dict.fromkeys(("port", "rest_api_port"), (0, MAX_PORT)),
        **dict.fromkeys(parallelism, (0, MAX_THREADS)),
        "per_process_gpu_memory_fraction": (0, 1),
        "rest_api_timeout_in_ms": (1, 86_400_000),
        "model_config_file_poll_wait_seconds": (0, 86_400),
        "file_system_poll_wait_seconds": (0, 86_400),
    }
    for name, (least, most) in limits.items():
        value = values.get(name)
        if value is not None and not least <= float(value) <= most:
            raise FlagError(f"--{name} must be from {least} to {most}, not {value}")
    port, rest = values.get("port"), values.get("rest_api_port")
    if port == 0 and not rest and not values.get("grpc_socket_path"):
        raise FlagError("nothing to listen on: --port is 0; give --rest_api_port or --grpc_socket_path")
