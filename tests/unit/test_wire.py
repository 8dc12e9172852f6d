"""Headers: what is written, what is read, and everything that is refused."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from growth import growth
from hypothesis import given
from hypothesis import strategies as st

from multitower import InvalidRequest, tensors, wire, worker_wire
from multitower.infer_header import parse_infer_header

X = {"name": "x", "datatype": "FP32", "shape": [2, 3]}


def header(**changes: Any) -> bytes:
    whole = {"model_name": "m", "inputs": [X], **changes}
    return json.dumps({key: value for key, value in whole.items() if value is not None}).encode()


def of_input(**changes: Any) -> bytes:
    return header(inputs=[{key: value for key, value in {**X, **changes}.items() if value is not None}])


REGION = "mt-123-4-" + "0123456789abcdef" * 2


def area(**changes: Any) -> dict[str, Any]:
    """The parameters of an input of 24 bytes in shared memory."""
    whole = {"region": REGION, "offset": 4096, "byte_size": 24, **changes}
    return {f"shared_memory_{name}": value for name, value in whole.items() if value is not None}


# What is wrong, and the parameter that is named for it.
BAD_AREAS: dict[str, tuple[dict[str, Any], str]] = {
    "an offset without a region": (area(region=None, byte_size=None), "region"),
    "a size without a region": (area(region=None, offset=None), "region"),
    **{
        f"a region {region!r}": (area(region=region), "region")
        for region in (
            *("", "r", 7, None, ["mt"], "mt-123-4-", REGION + "0", REGION[:-1], REGION.upper(), " " + REGION),
            *(REGION + "\n", REGION.replace("123", "-1"), REGION.replace("123", "0"), REGION.replace("123", "self")),
            *(REGION.replace("-4-", "-../4-"), REGION.replace("-4-", "-4/..-"), REGION.replace("4", "\u0664")),
            REGION.replace("123", "12345678901"),
        )
    },
    **{
        f"an offset of {offset!r}": (area(offset=offset), "offset")
        for offset in (-1, 2**63, 10**30, 1.0, "0", True, [0])
    },
    **{
        f"a size of {size!r}": (area(byte_size=size), "byte_size")
        for size in (0, -1, 2**63, 10**30, 24.0, "24", True, None)
    },
}

READ: dict[str, tuple[bytes, wire.InferHeader]] = {
    "the least": (b'{"model_name":"m","inputs":[]}', wire.InferHeader("m")),
    "an input": (header(), wire.InferHeader("m", inputs=(wire.Tensor("x", "FP32", (2, 3)),))),
    "everything": (
        header(
            model_version="7",
            outputs=[{"name": "b"}, {"name": "a"}],
            parameters={"timeout": 1_500_000, "priority": 3},
        ),
        wire.InferHeader("m", "7", (wire.Tensor("x", "FP32", (2, 3)),), ("b", "a"), 1_500_000, 3),
    ),
    "a scalar": (of_input(shape=[]), wire.InferHeader("m", inputs=(wire.Tensor("x", "FP32", ()),))),
    "an empty dimension": (of_input(shape=[0, 3]), wire.InferHeader("m", inputs=(wire.Tensor("x", "FP32", (0, 3)),))),
    "no outputs named": (b'{"model_name":"m","inputs":[],"outputs":[]}', wire.InferHeader("m")),
    "outputs null": (b'{"model_name":"m","inputs":[],"outputs":null}', wire.InferHeader("m")),
    "timeout null": (b'{"model_name":"m","inputs":[],"parameters":{"timeout":null}}', wire.InferHeader("m")),
    "the longest timeout": (
        b'{"model_name":"m","inputs":[],"parameters":{"timeout":9223372036854775807}}',
        wire.InferHeader("m", timeout_us=2**63 - 1),
    ),
    "white space": (b' {\n "model_name" : "m",\t"inputs" : [ ] } \r\n', wire.InferHeader("m")),
    "escapes": (b'{"model_name":"m\\u00e4\\ud83d\\ude00","inputs":[]}', wire.InferHeader("m\u00e4\U0001f600")),
    "a hundred levels": (
        b'{"model_name":"m","inputs":[],"x":' + b"[" * 99 + b"]" * 99 + b"}",
        wire.InferHeader("m"),
    ),
    "unknown keys": (
        b'{"model_name":"m","id":"1","x":{"y":[1.5,null,true]},'
        b'"inputs":[{"name":"x","datatype":"INT8","shape":[1],"parameters":{"z":1}}],'
        b'"outputs":[{"name":"y","parameters":{"binary_data":true}}],"parameters":{"sequence_id":3}}',
        wire.InferHeader("m", inputs=(wire.Tensor("x", "INT8", (1,)),), outputs=("y",)),
    ),
    "an input in shared memory": (
        of_input(parameters=area()),
        wire.InferHeader("m", inputs=(wire.Tensor("x", "FP32", (2, 3), wire.Area(REGION, 4096, 24)),)),
    ),
    "shared memory without an offset": (
        of_input(parameters=area(offset=None)),
        wire.InferHeader("m", inputs=(wire.Tensor("x", "FP32", (2, 3), wire.Area(REGION, 0, 24)),)),
    ),
    "a place for an output that is wanted": (
        header(inputs=[], outputs=[{"name": "z"}, {"name": "y", "parameters": area()}]),
        wire.InferHeader("m", outputs=("z", "y"), areas={"y": wire.Area(REGION, 4096, 24)}),
    ),
    "all outputs, and a place for one": (
        header(inputs=[], outputs=[{"name": "y", "parameters": area()}], parameters={"all_outputs": True}),
        wire.InferHeader("m", areas={"y": wire.Area(REGION, 4096, 24)}),
    ),
    "all outputs": (
        header(inputs=[], outputs=[{"name": "y"}], parameters={"all_outputs": True}),
        wire.InferHeader("m"),
    ),
}


def test_written_areas_are_read_back() -> None:
    place = wire.Area(REGION, 4096, 24)
    inputs = (wire.Tensor("x", "FP32", (2, 3), place), wire.Tensor("n", "INT8", (1,)))
    for outputs in (None, ("z", "y"), ("z",)):
        written = wire.infer_header("m", inputs, outputs=outputs, areas={"y": place})
        wanted = {"y": place} if outputs is None or "y" in outputs else {}
        assert parse_infer_header(written) == wire.InferHeader("m", "", inputs, outputs, areas=wanted)


@pytest.mark.parametrize("case", READ)
def test_headers_are_read(case: str) -> None:
    data, wanted = READ[case]
    assert parse_infer_header(data) == wanted


DEEP = b"[" * 100_000 + b"]" * 100_000

REFUSED: dict[str, tuple[bytes, str, str]] = {
    # header, reason, the field that details name
    "not UTF-8": (b'{"model_name":"\xff"}', "malformed", "header"),
    "not JSON": (b'{"model_name":', "malformed", "header"),
    "more than JSON": (b"{}{}", "malformed", "header"),
    "a byte order mark": (b"\xef\xbb\xbf{}", "malformed", "header"),
    "a control character": (b'{"model_name":"a\nb"}', "malformed", "header"),
    "a comment": (b"{} // no", "malformed", "header"),
    "a list": (b"[]", "malformed", "header"),
    "a word": (b"null", "malformed", "header"),
    "only white space": (b"  ", "malformed", "header"),
    "NaN": (b'{"model_name":"m","x":NaN}', "malformed", "header"),
    "Infinity": (b'{"model_name":"m","x":-Infinity}', "malformed", "header"),
    "1e999": (b'{"model_name":"m","x":1e999}', "malformed", "header"),
    "five thousand digits": (b'{"model_name":"m","x":' + b"9" * 5000 + b"}", "malformed", "header"),
    "deep lists": (b'{"model_name":"m","x":' + DEEP + b"}", "malformed", "header"),
    "deep objects": (b'{"a":' * 40_000 + b"1" + b"}" * 40_000, "malformed", "header"),
    "a key twice": (b'{"model_name":"m","model_name":"m","inputs":[]}', "malformed", "header"),
    "an inner key twice": (b'{"model_name":"m","inputs":[{"name":"x","name":"x"}]}', "malformed", "header"),
    "over its limit": (b" " * (wire.MAX_HEADER_BYTES + 1), "too_large", "header"),
    "no model": (header(model_name=None), "malformed", "model_name"),
    "an empty model": (header(model_name=""), "malformed", "model_name"),
    "a number as model": (header(model_name=7), "malformed", "model_name"),
    "a number as version": (header(model_version=7), "malformed", "model_version"),
    "version null": (b'{"model_name":"m","model_version":null,"inputs":[]}', "malformed", "model_version"),
    "parameters are a list": (header(parameters=[]), "malformed", "parameters"),
    "no time": (header(parameters={"timeout": 0}), "malformed", "parameters.timeout"),
    "negative time": (header(parameters={"timeout": -1}), "malformed", "parameters.timeout"),
    "fractional time": (header(parameters={"timeout": 1.0}), "malformed", "parameters.timeout"),
    "true as time": (header(parameters={"timeout": True}), "malformed", "parameters.timeout"),
    "time as text": (header(parameters={"timeout": "1"}), "malformed", "parameters.timeout"),
    "endless time": (header(parameters={"timeout": 2**63}), "malformed", "parameters.timeout"),
    "negative priority": (header(parameters={"priority": -1}), "malformed", "parameters.priority"),
    "fractional priority": (header(parameters={"priority": 0.5}), "malformed", "parameters.priority"),
    "signature a number": (header(parameters={"signature_name": 1}), "malformed", "parameters.signature_name"),
    "signature null": (header(parameters={"signature_name": None}), "malformed", "parameters.signature_name"),
    "label a number": (header(parameters={"version_label": 1}), "malformed", "parameters.version_label"),
    "label null": (header(parameters={"version_label": None}), "malformed", "parameters.version_label"),
    "version and label": (
        header(model_version="1", parameters={"version_label": "stable"}),
        "malformed",
        "parameters.version_label",
    ),
    "priority null": (b'{"model_name":"m","parameters":{"priority":null}}', "malformed", "parameters.priority"),
    "no inputs": (header(inputs=None), "malformed", "inputs"),
    "inputs are an object": (header(inputs={}), "malformed", "inputs"),
    "too many inputs": (header(inputs=[X] * (wire.MAX_INPUTS + 1)), "malformed", "inputs"),
    "an input is a number": (header(inputs=[7]), "malformed", "inputs[0]"),
    "an input with data": (of_input(data=[1]), "malformed", "inputs[0].data"),
    "an input without a name": (of_input(name=None), "malformed", "inputs[0].name"),
    "an input with an empty name": (of_input(name=""), "malformed", "inputs[0].name"),
    "an input twice": (header(inputs=[X, X]), "malformed", "inputs[1].name"),
    "no datatype": (of_input(datatype=None), "malformed", "inputs[0].datatype"),
    "a list as datatype": (of_input(datatype=[]), "malformed", "inputs[0].datatype"),
    "an unknown datatype": (of_input(datatype="FP13"), "datatype_mismatch", "inputs[0].datatype"),
    "a datatype in small letters": (of_input(datatype="fp32"), "datatype_mismatch", "inputs[0].datatype"),
    "no shape": (of_input(shape=None), "shape_invalid", "inputs[0].shape"),
    "a number as shape": (of_input(shape=6), "shape_invalid", "inputs[0].shape"),
    "a negative dimension": (of_input(shape=[2, -1]), "shape_invalid", "inputs[0].shape[1]"),
    "a fractional dimension": (of_input(shape=[2.0]), "shape_invalid", "inputs[0].shape[0]"),
    "true as dimension": (of_input(shape=[True]), "shape_invalid", "inputs[0].shape[0]"),
    "a dimension as text": (of_input(shape=["2"]), "shape_invalid", "inputs[0].shape[0]"),
    "a huge dimension": (of_input(shape=[2**63]), "shape_invalid", "inputs[0].shape[0]"),
    "a huge product": (of_input(shape=[2**62, 2]), "shape_invalid", "inputs[0].shape"),
    "too many dimensions": (of_input(shape=[1] * (wire.MAX_RANK + 1)), "shape_invalid", "inputs[0].shape"),
    "input parameters are a list": (of_input(parameters=[]), "malformed", "inputs[0].parameters"),
    "outputs are an object": (header(outputs={}), "malformed", "outputs"),
    "too many outputs": (header(outputs=[{"name": "y"}] * (wire.MAX_INPUTS + 1)), "malformed", "outputs"),
    "an output is a name": (header(outputs=["y"]), "malformed", "outputs[0].name"),
    "an output without a name": (header(outputs=[{}]), "malformed", "outputs[0].name"),
    "an output twice": (header(outputs=[{"name": "y"}] * 2), "malformed", "outputs[1].name"),
    **{
        f"{what} of an {side[:-1]}": (
            header(**{side: [{**X, "parameters": parameters}]}),
            "malformed",
            f"{side}[0].parameters.shared_memory_{parameter}",
        )
        for what, (parameters, parameter) in BAD_AREAS.items()
        for side in ("inputs", "outputs")
    },
    "an area that is too small": (
        of_input(parameters=area(byte_size=23)),
        "size_mismatch",
        "inputs[0].parameters.shared_memory_byte_size",
    ),
    "an area that is too large": (
        of_input(parameters=area(byte_size=25)),
        "size_mismatch",
        "inputs[0].parameters.shared_memory_byte_size",
    ),
    "an area of BYTES": (
        of_input(datatype="BYTES", parameters=area(byte_size=16)),
        "malformed",
        "inputs[0].parameters.shared_memory_region",
    ),
    "all_outputs as a number": (header(parameters={"all_outputs": 1}), "malformed", "parameters.all_outputs"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_bad_headers_are_refused_with_reason_and_field(case: str) -> None:
    data, reason, field = REFUSED[case]
    with pytest.raises(InvalidRequest) as error:
        parse_infer_header(data)
    assert (error.value.reason, error.value.details) == (reason, {"field": field})
    assert len(error.value.message) < 500


def test_an_empty_frame_equals_an_empty_object() -> None:
    assert wire.load_header(b"") == wire.load_header(b"{}") == {}


def test_a_header_may_have_its_full_length() -> None:
    assert wire.load_header(b'{"a":1}'.ljust(wire.MAX_HEADER_BYTES)) == {"a": 1}


@pytest.mark.parametrize("long", ["n" * 100_000, "\U0001f600" * 1000])
def test_long_values_are_abbreviated_in_messages(long: str) -> None:
    for data in (
        of_input(datatype=long),
        header(inputs=[{**X, "name": long}] * 2),
        json.dumps({"a": 1, long: 1}).encode(),
    ):
        with pytest.raises(InvalidRequest) as error:
            parse_infer_header(data)
        assert len(error.value.message) < 500


NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
TENSORS = st.builds(
    wire.Tensor, NAMES, st.sampled_from(tensors.DATATYPES), st.lists(st.integers(0, 1000), max_size=4).map(tuple)
)


@given(
    model=NAMES,
    version=st.one_of(st.just(""), NAMES),
    inputs=st.lists(TENSORS, max_size=4, unique_by=lambda tensor: tensor.name),
    outputs=st.one_of(st.none(), st.lists(NAMES, min_size=1, max_size=4, unique=True)),
    timeout=st.one_of(st.none(), st.integers(1, 2**63 - 1)),
    priority=st.integers(0, 2**63 - 1),
)
def test_written_headers_are_read_back(
    model: str,
    version: str,
    inputs: list[wire.Tensor],
    outputs: list[str] | None,
    timeout: int | None,
    priority: int,
) -> None:
    written = wire.infer_header(
        model, inputs, model_version=version, outputs=outputs, timeout_us=timeout, priority=priority
    )
    assert parse_infer_header(written) == wire.InferHeader(
        model, version, tuple(inputs), None if outputs is None else tuple(outputs), timeout, priority
    )


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["model_name", "inputs", "outputs", "parameters", "name", "datatype", "shape", "timeout"]),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=10,
)


@given(st.one_of(st.binary(max_size=60), JSON.map(lambda value: json.dumps(value).encode())))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(InvalidRequest):
        assert parse_infer_header(data).model_name


def test_json_is_compact_and_strict() -> None:
    assert wire.dump_json({"a": ["ä", 1]}) == '{"a":["ä",1]}'.encode()
    with pytest.raises(ValueError, match="JSON"):
        wire.dump_json(float("nan"))


def test_reply_headers_have_the_format_of_the_protocol() -> None:
    written = wire.reply_header("m", "7", [wire.Tensor("y", "FP32", (2, 3))])
    assert json.loads(written) == {
        "model_name": "m",
        "model_version": "7",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [2, 3]}],
    }


def test_half_a_surrogate_pair_is_written_as_an_escape() -> None:
    assert wire.dump_json({"cause": "\udce9\u00e9"}) == b'{"cause":"\\udce9\xc3\xa9"}'
    assert wire.load_header(wire.dump_json({"cause": "\udce9"})) == {"cause": "\udce9"}


def test_both_sides_forget_keys_in_step_by_number_and_by_bytes() -> None:
    memory = worker_wire.KeyMemory()
    for number in range(worker_wire.MAX_KEYS):
        memory.put(number, number, 10)
    assert memory.get(0) == 0
    memory.put(-1, -1, 10)
    assert memory.get(0) is None
    memory.put(-2, -2, worker_wire.MAX_KEY_BYTES - 10)
    assert memory.get(-1) == -1
    memory.put(-3, -3, 1)
    assert (memory.get(-1), memory.get(-3)) == (None, -3)


@pytest.mark.parametrize("what", ["inputs", "outputs"])
def test_reading_a_header_takes_time_in_proportion_to_its_tensors(what: str) -> None:
    def prepare(count: int) -> Callable[[], object]:
        tensors = [{**X, "name": f"tensor_{number}"} for number in range(count)]
        data = header(**{what: tensors})
        return lambda: parse_infer_header(data)

    assert growth(prepare, wire.MAX_INPUTS // 16, wire.MAX_INPUTS) < 2
