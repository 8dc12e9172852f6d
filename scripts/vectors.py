"""Writes docs/protocol-vectors.json: the wire protocol byte by byte, for authors of clients in other languages.

    python scripts/vectors.py

The bytes are built with `struct` and from literal JSON, without multitower's own code, which tests/unit/test_vectors.py
tests with this file.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

TARGET = Path(__file__).parents[1] / "docs" / "protocol-vectors.json"

ABOUT = [
    "Test vectors of the wire protocol MT1; docs/protocol.md explains it. All frames are hexadecimal.",
    "tensors: one frame for each. `values` is the flat list of elements, row-major; complex numbers are",
    "[real, imaginary], elements of BYTES are hexadecimal. A client must write these bytes for these values, and read",
    "them back.",
    "requests: all frames that a client sends, from the empty delimiter on, and their meaning.",
    "replies: all frames that a client receives, from the empty delimiter on, and their meaning. `error` is the error",
    "that a client must raise.",
    "refused: requests to a daemon that serves `model`, and the code, reason and field of the error that they get.",
    "A reply has the request's id, or `reply_id` where that is given.",
]

MODEL = {
    "name": "vectors",
    "version": "3",
    "max_batch_size": 8,
    "max_message_size": 4096,
    "inputs": [
        {"name": "x", "datatype": "FP32", "shape": [-1, 2]},
        {"name": "label", "datatype": "BYTES", "shape": [-1]},
    ],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1]}, {"name": "z", "datatype": "INT64", "shape": [-1]}],
}

# datatype, shape, values, the letter of `struct`
TENSORS: list[tuple[str, list[int], list[Any], str]] = [
    ("BOOL", [3], [True, False, True], "?"),
    ("UINT8", [2, 2], [0, 1, 127, 255], "B"),
    ("UINT16", [2], [1, 65535], "H"),
    ("UINT32", [2], [1, 4294967295], "I"),
    ("UINT64", [2], [1, 18446744073709551615], "Q"),
    ("INT8", [2], [1, -128], "b"),
    ("INT16", [2], [1, -32768], "h"),
    ("INT32", [2], [1, -2147483648], "i"),
    ("INT64", [2], [1, -9223372036854775808], "q"),
    ("FP16", [3], [1.0, -2.5, 65504.0], "e"),
    ("FP32", [2, 3], [0.0, 1.0, -2.5, 0.5, 3.0, -0.125], "f"),
    ("FP64", [1, 2], [1.0, -0.1], "d"),
    ("FP32", [], [1.5], "f"),
    ("FP32", [0, 4], [], "f"),
    ("INT64", [1, 1, 1], [7], "q"),
]


def _tensors() -> list[dict[str, Any]]:
    found = [
        {
            "datatype": datatype,
            "shape": shape,
            "values": values,
            "hex": struct.pack(f"<{len(values)}{letter}", *values).hex(),
        }
        for datatype, shape, values, letter in TENSORS
    ]
    # BF16 is the upper half of a float32.
    found.append({"datatype": "BF16", "shape": [2], "values": [1.0, -2.5], "hex": "803f20c0"})
    for datatype, letter in (("COMPLEX64", "f"), ("COMPLEX128", "d")):
        parts = [1.0, -2.0, 0.5, 0.0]
        values = [parts[:2], parts[2:]]
        found.append(
            {"datatype": datatype, "shape": [2], "values": values, "hex": struct.pack(f"<4{letter}", *parts).hex()}
        )
    for shape, elements in (
        ([3], [b"ab", b"", "gr\u00fcn".encode()]),
        ([2, 1], [b"\x00\xff\x00", b"\x01"]),
        ([], [b"scalar"]),
        ([0], []),
    ):
        frame = b"".join(struct.pack("<I", len(element)) + element for element in elements)
        values = [element.hex() for element in elements]
        found.append({"datatype": "BYTES", "shape": shape, "values": values, "hex": frame.hex()})
    return found


X = struct.pack("<4f", 1, 2, 3, 4)
LABEL = b"\x01\x00\x00\x00a\x02\x00\x00\x00bc"
INPUTS = b'"inputs":[{"name":"x","datatype":"FP32","shape":[2,2]},{"name":"label","datatype":"BYTES","shape":[2]}]'
INFER = b'{"model_name":"vectors",' + INPUTS + b"}"


def _with(text: bytes, replacement: bytes) -> bytes:
    assert text in INFER, text
    return INFER.replace(text, replacement)


def _shared(rest: bytes) -> bytes:
    """The first input in shared memory; `rest` are its parameters after the region."""
    region = b'"shared_memory_region":"mt-4194304-3-00112233445566778899aabbccddeeff",'
    return _with(b'"shape":[2,2]', b'"shape":[2,2],"parameters":{' + region + rest + b"}")


def _hex(frames: list[bytes]) -> list[str]:
    return [frame.hex() for frame in frames]


def _request(name: str, kind: bytes, header: bytes, *tensors: bytes, id: bytes = b"7") -> dict[str, Any]:
    return {
        "name": name,
        "frames": _hex([b"", kind, id, header, *tensors]),
        "kind": kind.decode(),
        "id": id.hex(),
        "header": json.loads(header) if header else {},
    }


def _requests() -> list[dict[str, Any]]:
    everything = (
        b'{"model_name":"vectors","model_version":"3",' + INPUTS + b',"outputs":[{"name":"z"},{"name":"y"}],'
        b'"parameters":{"timeout":1500000,"priority":1}}'
    )
    named = b'{"model_name":"vectors"}'
    return [
        _request("infer", b"MT1:infer", INFER, X, LABEL),
        _request(
            "infer with version, outputs, timeout and priority", b"MT1:infer", everything, X, LABEL, id=b"\x00" * 64
        ),
        _request(
            "infer with white space, escapes and keys to be ignored",
            b"MT1:infer",
            b'{ "model_name" : "v\\u0065ctors", "id": "x", ' + INPUTS + b', "parameters": {"other": [1.5, null]} }',
            X,
            LABEL,
        ),
        _request("server_live", b"MT1:server_live", b"{}"),
        _request("server_ready", b"MT1:server_ready", b"{}"),
        _request("server_metadata with an empty header", b"MT1:server_metadata", b""),
        _request("model_ready", b"MT1:model_ready", named),
        _request("model_metadata", b"MT1:model_metadata", b'{"model_name":"vectors","model_version":"3"}'),
        _request("model_config", b"MT1:model_config", named),
        _request("statistics of one model", b"MT1:statistics", named),
        _request("statistics of all models", b"MT1:statistics", b"{}"),
        _request("status", b"MT1:status", b"{}"),
        _request("metrics", b"MT1:metrics", b'{"format":"openmetrics"}'),
        _request("cancel", b"MT1:cancel", b"{}"),
    ]


def _replies() -> list[dict[str, Any]]:
    y = struct.pack("<2f", 0.5, -1)
    z = struct.pack("<2q", 1, -1)
    header = (
        b'{"model_name":"vectors","model_version":"3","outputs":[{"name":"y","datatype":"FP32","shape":[2]},'
        b'{"name":"z","datatype":"INT64","shape":[2]}]}'
    )
    full = (
        b'{"error":{"code":"RESOURCE_EXHAUSTED","reason":"queue_full","message":"the queue is full",'
        b'"details":{"queue_depth":1000,"retry_after_ms":40}}}'
    )
    plain = b'{"error":{"code":"INTERNAL","reason":"poisoned","message":"2 workers died with it"}}'
    later = b'{"error":{"code":"DATA_LOSS","reason":"of_a_later_release","message":"why","x":1}}'
    return [
        {
            "name": "outputs",
            "frames": _hex([b"", b"MT1:ok", b"7", header, y, z]),
            "id": b"7".hex(),
            "outputs": [
                {"name": "y", "datatype": "FP32", "shape": [2], "values": [0.5, -1.0]},
                {"name": "z", "datatype": "INT64", "shape": [2], "values": [1, -1]},
            ],
        },
        {
            "name": "an answer without tensors",
            "frames": _hex([b"", b"MT1:ok", b"7", b'{"cancelled":1}']),
            "id": b"7".hex(),
            "header": {"cancelled": 1},
        },
        *(
            {
                "name": name,
                "frames": _hex([b"", b"MT1:error", id, header]),
                "id": id.hex(),
                "error": {"details": {}, **{k: v for k, v in json.loads(header)["error"].items() if k != "x"}},
            }
            for name, id, header in (
                ("an error with details", b"7", full),
                ("an error without details", b"7", plain),
                ("an error to a request whose id could not be read", b"", plain),
                ("an error of a later release", b"7", later),
            )
        ),
    ]


def _refused() -> list[dict[str, Any]]:
    # name, frames, reason, field, and the reply's id if that is not the request's
    infer, id = b"MT1:infer", b"7"
    rows: list[tuple[Any, ...]] = [
        ("no delimiter", [infer, id, INFER, X, LABEL], "malformed", "envelope", b""),
        ("no kind", [b""], "malformed", "id", b""),
        ("no id", [b"", infer], "malformed", "id", b""),
        ("an empty id", [b"", infer, b"", INFER, X, LABEL], "malformed", "id", b""),
        ("an id of 65 bytes", [b"", infer, b"i" * 65, INFER, X, LABEL], "malformed", "id", b""),
        ("no header", [b"", infer, id], "malformed", "header"),
        ("an unknown kind", [b"", b"MT1:dance", id, b"{}"], "kind_unknown", "kind"),
        ("a later protocol", [b"", b"MT2:infer", id, INFER, X, LABEL], "kind_unknown", "kind"),
        ("a frame after the header of a question", [b"", b"MT1:status", id, b"{}", b""], "malformed", "frames"),
        ("a question about no model", [b"", b"MT1:model_ready", id, b"{}"], "malformed", "model_name"),
        (
            "a question about an unknown version",
            [b"", b"MT1:model_metadata", id, b'{"model_name":"vectors","model_version":"4"}'],
            "version_unknown",
            "model_version",
        ),
        ("a message over max_message_size", [b"", infer, id, INFER, X, LABEL + bytes(4096)], "too_large", "frames"),
        ("a frame missing", [b"", infer, id, INFER, X], "malformed", "inputs"),
        ("a frame too many", [b"", infer, id, INFER, X, LABEL, b""], "malformed", "inputs"),
        ("too few bytes", [b"", infer, id, INFER, X[:-1], LABEL], "size_mismatch", "x"),
        ("too many bytes", [b"", infer, id, INFER, X + b"\0", LABEL], "size_mismatch", "x"),
        ("fewer bytes than lengths", [b"", infer, id, INFER, X, LABEL[:7]], "size_mismatch", "label"),
    ]
    headers = [
        ("not UTF-8", b'{"model_name":"\xff"}', "malformed", "header"),
        ("not JSON", b"{", "malformed", "header"),
        ("not an object", b"[]", "malformed", "header"),
        ("a key twice", b'{"model_name":"vectors","model_name":"vectors"}', "malformed", "header"),
        ("NaN", b'{"model_name":"vectors","x":NaN}', "malformed", "header"),
        ("a number beyond a double", b'{"model_name":"vectors","x":1e999}', "malformed", "header"),
        ("no model", b"{" + INPUTS + b"}", "malformed", "model_name"),
        ("an unknown model", _with(b'"vectors"', b'"nobody"'), "model_unknown", "model_name"),
        ("an unknown version", _with(b'"inputs"', b'"model_version":"4","inputs"'), "version_unknown", "model_version"),
        (
            "a version that is no string",
            _with(b'"inputs"', b'"model_version":3,"inputs"'),
            "malformed",
            "model_version",
        ),
        (
            "an unknown signature",
            _with(b'"inputs"', b'"parameters":{"signature_name":"other"},"inputs"'),
            "signature_unknown",
            "parameters.signature_name",
        ),
        (
            "a signature that is no string",
            _with(b'"inputs"', b'"parameters":{"signature_name":1},"inputs"'),
            "malformed",
            "parameters.signature_name",
        ),
        (
            "an unknown label",
            _with(b'"inputs"', b'"parameters":{"version_label":"canary"},"inputs"'),
            "version_unknown",
            "parameters.version_label",
        ),
        (
            "a version and a label",
            _with(b'"inputs"', b'"model_version":"3","parameters":{"version_label":"stable"},"inputs"'),
            "malformed",
            "parameters.version_label",
        ),
        ("no inputs", b'{"model_name":"vectors"}', "malformed", "inputs"),
        ("a time of 0", _with(b'"inputs"', b'"parameters":{"timeout":0},"inputs"'), "malformed", "parameters.timeout"),
        (
            "a fraction of time",
            _with(b'"inputs"', b'"parameters":{"timeout":1.5},"inputs"'),
            "malformed",
            "parameters.timeout",
        ),
        (
            "a negative priority",
            _with(b'"inputs"', b'"parameters":{"priority":-1},"inputs"'),
            "malformed",
            "parameters.priority",
        ),
        ("data in the header", _with(b'"shape":[2]', b'"shape":[2],"data":["a","bc"]'), "malformed", "inputs[1].data"),
        (
            "shared memory",
            _with(b'"shape":[2]', b'"shape":[2],"parameters":{"shared_memory_region":"r"}'),
            "malformed",
            "inputs[1].parameters.shared_memory_region",
        ),
        (
            "shared memory of another size than the shape's",
            _shared(b'"shared_memory_byte_size":15'),
            "size_mismatch",
            "inputs[0].parameters.shared_memory_byte_size",
        ),
        (
            "shared memory without a size",
            _shared(b'"shared_memory_offset":4096'),
            "malformed",
            "inputs[0].parameters.shared_memory_byte_size",
        ),
        (
            "shared memory before its beginning",
            _shared(b'"shared_memory_offset":-1,"shared_memory_byte_size":16'),
            "malformed",
            "inputs[0].parameters.shared_memory_offset",
        ),
        ("an input twice", _with(b'"label"', b'"x"'), "malformed", "inputs[1].name"),
        ("an unknown input", _with(b'"label"', b'"tag"'), "input_unknown", "tag"),
        ("no datatype", _with(b'"datatype":"BYTES",', b""), "malformed", "inputs[1].datatype"),
        ("an unknown datatype", _with(b'"BYTES"', b'"STRING"'), "datatype_mismatch", "inputs[1].datatype"),
        ("another datatype than the model's", _with(b'"FP32"', b'"FP64"'), "datatype_mismatch", "x"),
        ("no shape", _with(b',"shape":[2]}', b"}"), "shape_invalid", "inputs[1].shape"),
        ("a negative dimension", _with(b"[2,2]", b"[2,-1]"), "shape_invalid", "inputs[0].shape[1]"),
        ("a fractional dimension", _with(b"[2,2]", b"[2.0,2]"), "shape_invalid", "inputs[0].shape[0]"),
        ("a dimension of 2^63", _with(b"[2,2]", b"[9223372036854775808,2]"), "shape_invalid", "inputs[0].shape[0]"),
        ("2^63 elements", _with(b"[2,2]", b"[4611686018427387904,2]"), "shape_invalid", "inputs[0].shape"),
        ("another rank than the model's", _with(b"[2,2]", b"[4]"), "shape_invalid", "x"),
        ("another dimension than the model's", _with(b"[2,2]", b"[2,3]"), "shape_invalid", "x"),
        ("inputs of different rows", _with(b'"shape":[2]', b'"shape":[3]'), "shape_invalid", "label"),
        ("an unknown output", _with(b'"inputs"', b'"outputs":[{"name":"w"}],"inputs"'), "output_unknown", "w"),
        (
            "an output twice",
            _with(b'"inputs"', b'"outputs":[{"name":"y"},{"name":"y"}],"inputs"'),
            "malformed",
            "outputs[1].name",
        ),
    ]
    rows += [(name, [b"", infer, id, header, X, LABEL], reason, field) for name, header, reason, field in headers]
    one = b'{"model_name":"vectors","inputs":[{"name":"x","datatype":"FP32","shape":[2,2]}]}'
    rows.append(("an input missing", [b"", infer, id, one, X], "input_missing", "label"))
    gone = _shared(b'"shared_memory_offset":4096,"shared_memory_byte_size":16')
    where = "inputs[0].parameters.shared_memory_region"
    rows.append(("shared memory of a pid that Linux never gives", [b"", infer, id, gone, LABEL], "malformed", where))
    codes = {
        "kind_unknown": "UNIMPLEMENTED",
        "model_unknown": "NOT_FOUND",
        "version_unknown": "NOT_FOUND",
        "signature_unknown": "NOT_FOUND",
    }
    found = []
    for name, frames, reason, field, *reply_id in rows:
        entry = {"name": name, "frames": _hex(frames), "code": codes.get(reason, "INVALID_ARGUMENT"), "reason": reason}
        entry["field"] = field
        if reply_id:
            entry["reply_id"] = reply_id[0].hex()
        found.append(entry)
    return found


def generate() -> str:
    """The contents of the file, with one vector on each line."""
    parts = [
        f'  "about": {json.dumps(ABOUT, indent=4)[:-1]}  ]',
        '  "protocol": "MT1"',
        f'  "model": {json.dumps(MODEL)}',
    ]
    for name, vectors in (
        ("tensors", _tensors()),
        ("requests", _requests()),
        ("replies", _replies()),
        ("refused", _refused()),
    ):
        lines = ",\n".join(f"    {json.dumps(vector)}" for vector in vectors)
        parts.append(f'  "{name}": [\n{lines}\n  ]')
    return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    TARGET.write_text(generate())
