"""The public wire protocol: its constants, the writing of its headers, and the strict parsing of JSON.

docs/protocol.md specifies it. Both clients write requests and read replies with this module; the router writes replies
with it, and parses the headers of requests with `infer_header.py`. Messages have the request-reply envelope of ZeroMQ's
RFC 28. After its empty delimiter frame, a message is:

    request:  kind | id | header (JSON) | one raw frame per input, in header order
    reply:    MT1:ok or MT1:error | id | header (JSON) | one raw frame per output, in header order
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, NoReturn

from multitower.errors import Reason, make
from multitower.trace_context import TraceContext

VERSION: Final = "MT1"

# Kinds of request.
INFER: Final = b"MT1:infer"
SERVER_LIVE: Final = b"MT1:server_live"
SERVER_READY: Final = b"MT1:server_ready"
SERVER_METADATA: Final = b"MT1:server_metadata"
MODEL_READY: Final = b"MT1:model_ready"
MODEL_METADATA: Final = b"MT1:model_metadata"
MODEL_CONFIG: Final = b"MT1:model_config"
STATISTICS: Final = b"MT1:statistics"
STATUS: Final = b"MT1:status"
METRICS: Final = b"MT1:metrics"
CANCEL: Final = b"MT1:cancel"
KINDS: Final = frozenset(
    (
        INFER,
        SERVER_LIVE,
        SERVER_READY,
        SERVER_METADATA,
        MODEL_READY,
        MODEL_METADATA,
        MODEL_CONFIG,
        STATISTICS,
        STATUS,
        METRICS,
        CANCEL,
    )
)

# Kinds of request of the control endpoint only.
RELOAD: Final = b"MT1:reload"
RESTART: Final = b"MT1:restart"
LOAD: Final = b"MT1:load"
UNLOAD: Final = b"MT1:unload"
RECORD: Final = b"MT1:record"  # its reply has frames, as one to `infer`

# Kind of request of the gateway's private endpoint only.
AUTHENTICATE: Final = b"MT1:authenticate"

# Kinds of reply.
OK: Final = b"MT1:ok"
ERROR: Final = b"MT1:error"

DELIMITER: Final = b""
MAX_ID_BYTES: Final = 64
MAX_HEADER_BYTES: Final = 1 << 20  # names and numbers of thousands of inputs; parsing more would block the router
MAX_NAME_BYTES: Final = 1024
MAX_KIND_BYTES: Final = 64
MAX_RANK: Final = 64
MAX_INPUTS: Final = 8192
MAX_DIMENSION: Final = 2**63 - 1
MAX_RECORDED: Final = 1000  # requests of one `record`: a warm-up file of TensorFlow Serving has no more
DEFAULT_MAX_MESSAGE_SIZE: Final = 64 << 20
DEFAULT_TIMEOUT_S: Final = 30.0
DEFAULT_ENDPOINT: Final = "tcp://127.0.0.1:5555"
ENDPOINT_VARIABLE: Final = "MULTITOWER_ENDPOINT"
KEY_VARIABLE: Final = "MULTITOWER_KEY"
SERVER_KEY_VARIABLE: Final = "MULTITOWER_SERVER_KEY"
CLIENT_VARIABLES: Final = frozenset((ENDPOINT_VARIABLE, KEY_VARIABLE, SERVER_KEY_VARIABLE))
"""What clients read from the environment, and the daemon's configuration does not."""

# The header of `MT1:metrics`, and its formats.
FORMAT: Final = "format"
PROMETHEUS: Final = "prometheus"
OPENMETRICS: Final = "openmetrics"
CONTENT_TYPE: Final = "content_type"
METRICS_FORMATS: Final = (PROMETHEUS, OPENMETRICS)

# Parameters of the infer header.
TIMEOUT: Final = "timeout"  # microseconds, a positive integer
PRIORITY: Final = "priority"
SIGNATURE: Final = "signature_name"
VERSION_LABEL: Final = "version_label"  # instead of model_version
ALL_OUTPUTS: Final = "all_outputs"  # a boolean: all outputs are wanted, and `outputs` only names areas for some
# Parameters of an input or output in shared memory; Triton's names.
SHARED_MEMORY_REGION: Final = "shared_memory_region"
SHARED_MEMORY_OFFSET: Final = "shared_memory_offset"
SHARED_MEMORY_BYTE_SIZE: Final = "shared_memory_byte_size"
SHARED_MEMORY_KEYS: Final = (SHARED_MEMORY_REGION, SHARED_MEMORY_OFFSET, SHARED_MEMORY_BYTE_SIZE)
SHARED_MEMORY_EXTENSION: Final = "shared_memory"  # in the `extensions` of the daemon's metadata
REGION_MAGIC: Final = b"MT1:region\n"
"""The first bytes of a region; the nonce of the region's name follows."""
REGION_NAME: Final = re.compile(r"mt-([1-9][0-9]{0,9})-(0|[1-9][0-9]{0,9})-([0-9a-f]{32})", re.ASCII)
"""A region's name: the client's pid, the descriptor in that process, and the nonce."""


class Area(NamedTuple):
    """A part of a shared memory region: the region's name, the offset in it, and the size in bytes."""

    region: str
    offset: int
    size: int

    def parameters(self) -> dict[str, Any]:
        """The parameters in the header of a request or reply."""
        return dict(zip(SHARED_MEMORY_KEYS, self, strict=True))


@dataclass(frozen=True, slots=True)
class Tensor:
    """Name, datatype and shape of a tensor in a header; its bytes are in `area`, or in a frame if that is None."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    area: Area | None = None


@dataclass(frozen=True, slots=True)
class InferHeader:
    """The header of an `MT1:infer` request: the Open Inference Protocol's JSON request without `data`.

    Attributes:
        model_name: the model's name.
        model_version: its version; "" for the one that is served.
        inputs: in the order of their frames.
        outputs: names of the outputs wanted, in the order of the reply; None for all.
        timeout_us: microseconds from the router's receipt, or None.
        priority: 0 or more; 0 is the default.
        areas: where outputs may be written, by name.
        signature: the model's signature; "" for its default one.
        version_label: a label of the version, instead of its number; or "".
        trace: that the request belongs to; None if it names none, or an invalid one.
    """

    model_name: str
    model_version: str = ""
    inputs: tuple[Tensor, ...] = field(default=())
    outputs: tuple[str, ...] | None = None
    timeout_us: int | None = None
    priority: int = 0
    areas: Mapping[str, Area] = field(default_factory=dict)
    signature: str = ""
    version_label: str = ""
    trace: TraceContext | None = None


def dump_json(value: Any) -> bytes:
    """Compact JSON in UTF-8.

    Half a surrogate pair, as in file names that are not UTF-8, is written as an escape sequence, which JSON allows.

    Raises:
        ValueError: NaN or an infinity, or a value that refers to itself.
        TypeError: a value that JSON cannot express.
    """
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace")


def infer_header(
    model_name: str,
    inputs: Sequence[Tensor],
    *,
    model_version: str = "",
    outputs: Sequence[str] | None = None,
    timeout_us: int | None = None,
    priority: int = 0,
    areas: Mapping[str, Area] | None = None,
    signature: str = "",
    version_label: str = "",
) -> bytes:
    """The bytes of an `MT1:infer` header. Equal arguments give equal bytes, which the router's cache relies on.

    Args:
        model_name: see `InferHeader`, also for the others.
        inputs: in the order of their frames.
        model_version: its version.
        outputs: names of the outputs wanted.
        timeout_us: microseconds.
        priority: 0 or more.
        areas: where outputs may be written, by name. Areas of outputs that are not wanted are ignored.
        signature: the model's signature.
        version_label: a label of the version.
    """
    areas = areas or {}
    header: dict[str, Any] = {"model_name": model_name}
    if model_version:
        header["model_version"] = model_version
    header["inputs"] = [_described(tensor) for tensor in inputs]
    if outputs is not None or areas:
        names = areas if outputs is None else outputs
        header["outputs"] = [
            {"name": name, "parameters": areas[name].parameters()} if name in areas else {"name": name}
            for name in names
        ]
    parameters: dict[str, int | str] = {}
    if outputs is None and areas:
        parameters[ALL_OUTPUTS] = True
    if timeout_us is not None:
        parameters[TIMEOUT] = timeout_us
    if priority:
        parameters[PRIORITY] = priority
    if signature:
        parameters[SIGNATURE] = signature
    if version_label:
        parameters[VERSION_LABEL] = version_label
    if parameters:
        header["parameters"] = parameters
    return dump_json(header)


def reply_header(model_name: str, model_version: str, outputs: Sequence[Tensor]) -> bytes:
    """The bytes of the header of an `MT1:ok` reply to `MT1:infer`."""
    return dump_json(
        {
            "model_name": model_name,
            "model_version": model_version,
            "outputs": [_described(tensor) for tensor in outputs],
        }
    )


def _described(tensor: Tensor) -> dict[str, Any]:
    described: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
    if tensor.area is not None:
        described["parameters"] = tensor.area.parameters()
    return described


def refuse(message: str, field_name: str = "header") -> NoReturn:
    """Refuses a header.

    Args:
        message: what is wrong with it.
        field_name: the field at fault.

    Raises:
        InvalidRequest: `malformed`.
    """
    raise make(Reason.MALFORMED, message, field=field_name)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                refuse(f"the header has the key {key[:80]!r} twice")
            seen.add(key)
    return found


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        refuse(f"the header holds the number {text[:40]}, which is out of the range of a double")
    return number


def _no_constant(text: str) -> NoReturn:
    refuse(f"the header holds {text}, which is not JSON")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_no_duplicates, parse_float=_finite, parse_constant=_no_constant, strict=True
)


def check_kind(size: int) -> None:
    """Checks the size of a kind in bytes, before it is copied.

    Raises:
        InvalidRequest: `kind_unknown` over `MAX_KIND_BYTES`.
    """
    if size > MAX_KIND_BYTES:
        raise make(Reason.KIND_UNKNOWN, f"unknown kind of {size} bytes; this daemon speaks {VERSION}", field="kind")


def check_header(size: int) -> None:
    """Checks the size of a header in bytes, before it is copied.

    Raises:
        InvalidRequest: `too_large` over `MAX_HEADER_BYTES`.
    """
    if size > MAX_HEADER_BYTES:
        raise make(Reason.TOO_LARGE, f"the header has {size} bytes; the limit is {MAX_HEADER_BYTES}", field="header")


def load_header(data: Any) -> dict[str, Any]:
    """Parses a header frame, strictly: a JSON object in UTF-8. An empty frame is `{}`.

    Args:
        data: the frame; `bytes`, or where it is large another object with the buffer protocol.

    Raises:
        InvalidRequest: `too_large` over `MAX_HEADER_BYTES`; `malformed` for anything that is not one JSON object in
            UTF-8, and for NaN, infinities, numbers out of range, duplicate keys and nesting that is too deep.
    """
    if not data:
        return {}
    check_header(len(data))
    try:
        value = _DECODER.decode(str(data, "utf-8"))
    except UnicodeDecodeError as error:
        refuse(f"the header is not UTF-8 (byte {error.start})")
    except json.JSONDecodeError as error:
        refuse(f"the header is not JSON: {error.msg} at character {error.pos}")
    except RecursionError:
        refuse("the header is nested too deeply")
    except ValueError:
        # Python refuses to parse integers of more than 4300 digits.
        refuse("the header holds a number with too many digits")
    if not isinstance(value, dict):
        refuse("the header is not a JSON object")
    return value
