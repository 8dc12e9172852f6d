"""Recorded requests as bytes: TensorFlow Serving's messages in TensorFlow's records."""

from __future__ import annotations

import random
import stat
from pathlib import Path

import pytest

from multitower import InvalidRequest, MultitowerError, tensors
from multitower.tools.prediction_log import (
    Input,
    RecordedRequest,
    encode_prediction_log,
    encode_tensor,
    read_recorded,
)
from multitower.tools.replaced_file import replaced_file
from multitower.tools.tfrecord import crc32c, frame_record

# x is [[1.5, -2.0]], as tensorflow-serving-api 2.21 writes it: for the output y, and for the signature `twice`.
PREDICT = "32270a250a030a016d121b0a0178121608011208120208011202080222080000c03f000000c01a0179"
TWICE = "322b0a290a0a0a016d1a057477696365121b0a0178121608011208120208011202080222080000c03f000000c0"

X = Input("x", "FP32", (1, 2), bytes.fromhex("0000c03f000000c0"))


@pytest.mark.parametrize(
    ("data", "checksum"),
    # From RFC 3720, appendix B.4.
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
    ],
)
def test_checksums_are_those_of_the_standard(data: bytes, checksum: int) -> None:
    assert crc32c(data) == checksum


@pytest.mark.parametrize("size", [1023, 1024, 1025, 2048, 10_000])
def test_checksums_of_many_bytes_are_those_of_a_loop(size: int) -> None:
    data = random.Random(size).randbytes(size)
    state = 0xFFFFFFFF
    for byte in data:
        state ^= byte
        for _ in range(8):
            state = (state >> 1) ^ (0x82F63B78 if state & 1 else 0)
    assert crc32c(data) == state ^ 0xFFFFFFFF


def test_a_record_is_framed_as_tensorflow_does() -> None:
    # Written by tf.io.TFRecordWriter.
    assert b"".join(frame_record(b"hello")).hex() == "0500000000000000eab2043e68656c6c6fbb1f1c19"


def test_messages_are_those_of_tensorflow_servings_package() -> None:
    assert encode_prediction_log("m", RecordedRequest("", ("y",), (X,))).hex() == PREDICT
    assert encode_prediction_log("m", RecordedRequest("twice", (), (X,))).hex() == TWICE


def test_text_needs_as_many_elements_as_its_shape() -> None:
    frame = tensors.encode_bytes([b"a", "é"])
    assert encode_tensor("BYTES", (2,), frame).hex() == "080712041202080242016142 02c3a9".replace(" ", "")
    with pytest.raises(InvalidRequest, match="exactly 3 elements"):
        encode_tensor("BYTES", (3,), frame)


@pytest.mark.parametrize("frames", [[b"{}"], [b'{"inputs": [{"name": "x"}]}'], [b"no JSON"], [b"\xff"]])
def test_a_malformed_reply_is_an_error(frames: list[bytes]) -> None:
    with pytest.raises(MultitowerError, match=r"cannot be read|header"):
        read_recorded(frames)


def test_a_private_file_stays_private_when_it_replaces_another(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before")
    path.chmod(0o644)
    with replaced_file(path, 0o600) as file:
        file.write(b"after")
    assert path.read_bytes() == b"after"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
