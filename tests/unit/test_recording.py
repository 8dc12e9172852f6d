"""The recorder keeps requests that a model has answered, within its limits, and observes the router only meanwhile."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from multitower.errors import MultitowerError, Reason, make
from multitower.supervisor.observability import recording
from multitower.supervisor.observability.recording import MAX_RECORDINGS, Recorder
from multitower.supervisor.routing.router import Router
from multitower.supervisor.scheduling.open_requests import Reply
from multitower.supervisor.scheduling.request import BatchKey, Plan, Request
from multitower.supervisor.scheduling.shared_memory_areas import OpenArea
from multitower.supervisor.scheduling.shared_memory_region import Region
from multitower.worker_wire import SIZES, KeySpec

KEY = BatchKey(KeySpec("m", (("x", "UINT8", (2,)),), ("y",), True), 8)
PADDED = BatchKey(KeySpec("m", (("x", "UINT8", (-1,)), (SIZES, "INT64", (1,))), None, True), 8)
WHOLE = BatchKey(KeySpec("m", (("x", "UINT8", (3,)),), None, False, version="7"), 0, version="7")


Frames = Sequence[Any]
"""The frames of the reply to `MT1:record`."""


class FakeRouter:
    """Stands for the router: keeps what observes it."""

    def __init__(self) -> None:
        self.observers: list[Any] = []
        self.models = SimpleNamespace(report=lambda *_: SimpleNamespace(signature="serving_default"))


class Scene:
    """A recorder and its router; `ended` gets what recordings have kept."""

    def __init__(self) -> None:
        self.router = FakeRouter()
        self.recorder = Recorder(cast(Router, self.router))
        self.ended: list[Frames] = []

    def start(self, count: int = 2, version: str = "", ends_at: float = 10.0, model: str = "m") -> None:
        self.recorder.start(model, version, count, ends_at, self.ended.append)

    def accept(self, frame: Any = b"ab", key: BatchKey = KEY, version: str = "1", **plan: Any) -> Request:
        made = Plan(key, 1, (0,), (len(frame),), (False,), ("x",), 1.0, **plan)
        request = Request(("sender",), b"id", made, [frame], len(frame), 0.0)
        request.version = version
        for observer in tuple(self.router.observers):
            if observer.observe_acceptance(request):
                request.observers = (*request.observers, observer)
        return request

    def answer(self, request: Request, answer: Any = ()) -> None:
        request.frames = ()
        for observer in request.observers:
            observer.observe_replies([Reply(request, answer)], 0.0)


def header(recorded: Frames) -> dict[str, Any]:
    """The header of the reply."""
    value: dict[str, Any] = json.loads(recorded[0])
    return value


def kept(recorded: Frames) -> list[tuple[Any, bytes]]:
    """The shape and the bytes of the input of each request."""
    return [
        (json.loads(described)["inputs"][0]["shape"], bytes(frame))
        for described, frame in zip(recorded[1::2], recorded[2::2], strict=True)
    ]


def test_answered_requests_are_kept_and_failed_ones_replaced() -> None:
    scene = Scene()
    scene.start(count=2)
    first, second, third = scene.accept(b"aa"), scene.accept(b"bb"), scene.accept(b"cc")
    scene.answer(first, make(Reason.MODEL_ERROR, "it raised"))
    scene.answer(third)
    assert not scene.ended, "the third was one too many while two were wanted"
    fourth = scene.accept(b"dd")
    scene.answer(fourth)
    scene.answer(second)
    (recorded,) = scene.ended
    assert header(recorded) == {"model_name": "m", "recorded": 2, "ended": "complete"}
    assert kept(recorded) == [([1, 2], b"dd"), ([1, 2], b"bb")]
    described = json.loads(recorded[1])
    assert (described["signature_name"], described["outputs"]) == ("serving_default", ["y"])
    assert not scene.router.observers, "the router is not observed any more"
    assert scene.recorder._bytes == 0


def test_shapes_are_whole_also_of_padded_and_unbatched_requests() -> None:
    scene = Scene()
    scene.start(count=2)
    scene.answer(scene.accept(b"abcd", PADDED, sizes_frame=(4).to_bytes(8, "little")))
    scene.answer(scene.accept(b"abc", WHOLE))
    assert kept(scene.ended[0]) == [([1, 4], b"abcd"), ([3], b"abc")]


def test_shared_memory_is_copied_when_the_request_is_accepted() -> None:
    scene = Scene()
    scene.start(count=1)
    descriptor = os.memfd_create("test")
    os.pwrite(descriptor, b"..ab", 0)
    request = scene.accept(OpenArea(Region("mt-1", descriptor), 2, 2))
    os.pwrite(descriptor, b"..zz", 0)
    scene.answer(request)
    assert kept(scene.ended[0]) == [([1, 2], b"ab")]


def test_an_area_that_cannot_be_read_costs_the_recording_only(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene()
    scene.start(count=1)
    scene.answer(scene.accept(OpenArea(Region("mt-1", os.memfd_create("test")), 0, 2)))
    assert "internal error while recording a request" in caplog.text
    scene.answer(scene.accept(b"ok"))
    assert kept(scene.ended[0]) == [([1, 2], b"ok")]


def test_only_requests_of_the_wanted_version_and_model_are_kept() -> None:
    scene = Scene()
    scene.start(count=1, version="1")
    scene.start(count=1, model="other")
    scene.accept(b"abc", WHOLE)  # it names version 7
    scene.answer(scene.accept(b"aa", version="2"))  # it named none, and version 2 has answered it
    assert not scene.ended
    scene.answer(scene.accept(b"bb", version="1"))
    assert kept(scene.ended[0]) == [([1, 2], b"bb")]
    assert len(scene.router.observers) == 1, "the other recording goes on"


def test_the_bytes_of_all_recordings_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "MAX_BYTES", 2 * recording.INPUT_BYTES + 100)
    scene = Scene()
    scene.start(count=5)
    request = scene.accept(b"aa")
    scene.accept(bytes(200))
    assert not scene.ended, "the one that was kept is still to be answered"
    scene.answer(request)
    assert header(scene.ended[0])["ended"] == "full"
    assert kept(scene.ended[0]) == [([1, 2], b"aa")]
    scene.start(count=1)
    scene.answer(scene.accept(b"bb"))
    assert header(scene.ended[1])["ended"] == "complete", "what an ended recording kept counts no more"


def test_a_recording_ends_with_its_time_or_the_daemon() -> None:
    scene = Scene()
    assert scene.recorder.due == float("inf")
    scene.start(ends_at=5.0)
    scene.start(ends_at=7.0)
    scene.answer(scene.accept())
    assert scene.recorder.due == 5.0
    scene.recorder.tick(4.9)
    assert not scene.ended
    scene.recorder.tick(5.0)
    scene.recorder.end_all()
    assert [header(each)["ended"] for each in scene.ended] == ["timeout", "draining"]
    assert [header(each)["recorded"] for each in scene.ended] == [1, 1]


def test_the_number_of_recordings_is_bounded() -> None:
    scene = Scene()
    for _ in range(MAX_RECORDINGS):
        scene.start()
    with pytest.raises(MultitowerError) as raised:
        scene.start()
    assert raised.value.reason == Reason.TOO_MANY_ORDERS


def test_a_reply_that_cannot_be_sent_ends_the_recording(caplog: pytest.LogCaptureFixture) -> None:
    def fail(_: Frames) -> None:
        raise OSError("no")

    scene = Scene()
    scene.recorder.start("m", "", 1, 10.0, fail)
    scene.answer(scene.accept())
    assert "internal error while answering an order to record" in caplog.text
    assert not scene.router.observers


def test_no_recording_begins_while_the_daemon_drains() -> None:
    scene = Scene()
    scene.recorder.end_all()
    with pytest.raises(MultitowerError) as raised:
        scene.start()
    assert raised.value.reason == Reason.DRAINING
    assert scene.recorder.due == float("inf")
