from __future__ import annotations

import json

import pytest

from multitower.client.tracing import sampled_trace
from multitower.infer_header import parse_infer_header
from multitower.trace_context import add_to_header, read_traceparent, split_header

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{SPAN}-01"
HEADER = b'{"model_name":"m","inputs":[{"name":"x","datatype":"FP32","shape":[1]}],"parameters":{"timeout":5}}'


def test_a_valid_traceparent_is_read():
    context = read_traceparent(PARENT, "a=1,b=2")
    assert context is not None
    assert (f"{context.trace_id:032x}", f"{context.span_id:016x}") == (TRACE, SPAN)
    assert (context.sampled, context.state) == (True, "a=1,b=2")
    unsampled = read_traceparent(f"00-{TRACE}-{SPAN}-02")
    assert unsampled is not None
    assert not unsampled.sampled


def test_a_traceparent_of_a_later_version_may_have_more_fields():
    assert read_traceparent(f"cc-{TRACE}-{SPAN}-01-what-the-future-has") is not None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "00",
        PARENT.upper(),
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"{PARENT}-more",
        f"{PARENT}\n",
        f" {PARENT}",
        PARENT.replace("4", "٤"),
        f"00-{TRACE[1:]}-{SPAN}-01",
        f'cc-{TRACE}-{SPAN}-01-","timeout":1,"x":"',
        f"cc-{TRACE}-{SPAN}-01-\\",
        f"cc-{TRACE}-{SPAN}-01-\x00",
    ],
)
def test_an_invalid_traceparent_is_ignored(text):
    assert read_traceparent(text) is None
    header = json.loads(HEADER)
    header["parameters"]["traceparent"] = text
    assert parse_infer_header(json.dumps(header).encode()).trace is None
    assert split_header(HEADER[:-2] + f',"traceparent":{json.dumps(text)}}}}}'.encode())[1] is None


@pytest.mark.parametrize("value", [None, 1, [], {"a": 1}, True])
def test_a_traceparent_that_is_no_text_is_ignored(value):
    header = json.loads(HEADER)
    header["parameters"] |= {"traceparent": value, "tracestate": value}
    assert parse_infer_header(json.dumps(header).encode()).trace is None


@pytest.mark.parametrize("state", ["", "a=1", "a=1,b@c=x y", 'q="\\"'])
def test_a_header_is_read_alike_with_and_without_splitting(state):
    header = add_to_header(HEADER, PARENT, state)
    whole = parse_infer_header(header)
    assert whole.trace is not None
    assert (f"{whole.trace.trace_id:032x}", whole.trace.state) == (TRACE, state)
    rest, context = split_header(header)
    if '"' in state:
        assert (rest, context) == (header, None)  # left to the parser
    else:
        assert rest == HEADER
        assert context is not None
        assert (context.trace_id, context.span_id, context.state) == (whole.trace.trace_id, whole.trace.span_id, state)


def test_a_tracestate_that_is_too_long_is_left_out():
    assert split_header(add_to_header(HEADER, PARENT, "a=" + "1" * 511))[0] == HEADER
    assert b"tracestate" not in add_to_header(HEADER, PARENT, "a=\n1")


@pytest.mark.parametrize(
    "header",
    [
        b'{"model_name":"m","parameters":{,"traceparent":"%s"}}',
        b'{"model_name":"m","parameters":{"timeout":5,,"traceparent":"%s"}}',
        b'{"model_name":"m","parameters":{"timeout":5 ,"traceparent":"%s"}}',
        b'{"model_name":"m","parameters":{"traceparent":"%s","traceparent":"%s"}}',
        b'{"model_name":"m","parameters":{"timeout":5,"traceparent":"%s","tracestate":"a","tracestate":"b"}}',
        b'{"model_name":"m","parameters":{"timeout":5,"traceparent":"%s"}}}',
        b'{"model_name":"m","parameters":{"timeout":5,"traceparent":"%s"}} ',
        b',"traceparent":"%s"}}',
    ],
)
def test_other_forms_of_headers_are_left_to_the_parser(header):
    header = header.replace(b"%s", PARENT.encode())
    assert split_header(header) == (header, None)


def test_only_the_known_fields_of_a_later_version_are_passed_on():
    given = sampled_trace({"traceparent": f"cc-{TRACE}-{SPAN}-01-more"})
    assert given is not None
    header = add_to_header(HEADER, *given)
    assert json.loads(header)["parameters"] == {"timeout": 5, "traceparent": f"cc-{TRACE}-{SPAN}-01"}
    assert split_header(header)[0] == HEADER


def test_a_client_does_not_let_a_traceparent_add_parameters():
    assert sampled_trace({"traceparent": f'cc-{TRACE}-{SPAN}-01-","priority":9,"x":"'}) is None
    assert add_to_header(HEADER, f'{PARENT}-","priority":9,"x":"') == add_to_header(HEADER, PARENT)


def test_headers_that_are_none_name_no_trace():
    assert sampled_trace({"traceparent": None}) is None  # type: ignore[dict-item]
    given = sampled_trace({"traceparent": PARENT, "tracestate": None})  # type: ignore[dict-item]
    assert given == (PARENT, "")
