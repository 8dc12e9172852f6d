"""Handlers: how a class is imported, what it may declare, and how its outputs are checked."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from multitower.errors import InvalidRequest, ModelError
from multitower.spec import ModelSpec, TensorReport
from multitower.worker.formats.handler import HandlerModel
from multitower.worker.model_errors import LoadError

HANDLERS = """
from types import SimpleNamespace

import numpy as np

from multitower import InvalidRequest, Reason


class Base:
    def load(self, devices, parameters):
        self.devices, self.parameters = devices, parameters

    def infer(self, inputs):
        return dict(inputs)


class Sized(Base):
    def load(self, devices, parameters):
        size = parameters["size"]
        self.inputs = [
            {"name": "image", "datatype": "UINT8", "shape": (-1, size, size, 3)},
            {"name": "tag", "datatype": "BYTES", "shape": None},
        ]
        self.outputs = [{"name": "thumb", "datatype": "FP32", "shape": [-1, size]}]

    def infer(self, inputs):
        return {"thumb": np.zeros((2, 4), np.float32), "more": 1}


class Returns(Base):
    def load(self, devices, parameters):
        self.value = parameters["value"]

    def infer(self, inputs):
        return self.value


class Closing(Base):
    closed = 0

    def close(self):
        Closing.closed += 1


class Thief(Base):
    def infer(self, inputs):
        inputs.clear()
        return {}


class Refusing(Base):
    def infer(self, inputs):
        raise InvalidRequest(Reason.SHAPE_INVALID, "too small", {"field": "x"})


class NoInfer:
    def load(self, devices, parameters):
        pass


class BadDatatype(Base):
    inputs = [{"name": "x", "datatype": "float32", "shape": [-1]}]


class BadShape(Base):
    outputs = [{"name": "x", "datatype": "FP32", "shape": [-2]}]


class BadEntry(Base):
    inputs = [{"name": "x", "datatype": "FP32"}]


class BadName(Base):
    inputs = [{"name": 1, "datatype": "FP32", "shape": []}]


class NotAList(Base):
    outputs = ["x"]


class Twice(Base):
    inputs = [{"name": "x", "datatype": "FP32", "shape": []}] * 2


outer = SimpleNamespace()
outer.Inner = Base
instance = Base()
"""


@pytest.fixture(scope="module", autouse=True)
def module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("handlers")
    (folder / "worker_test_handlers.py").write_text(HANDLERS)
    (folder / "worker_test_needy.py").write_text("import a_package_that_nobody_has\n")
    (folder / "worker_test_faulty.py").write_text("1 / 0\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield
        for name in [name for name in sys.modules if name.startswith("worker_test_")]:
            patch.delitem(sys.modules, name)


def load(name: str, **parameters: Any) -> HandlerModel:
    return HandlerModel(ModelSpec(name="m", handler=f"worker_test_handlers:{name}", parameters=parameters), ["cpu:0"])


def test_load_is_given_the_devices_and_the_parameters() -> None:
    model = load("Base", a=1)
    assert (model._handler.devices, model._handler.parameters) == (["cpu:0"], {"a": 1})


def test_declarations_may_depend_on_the_parameters() -> None:
    model = load("Sized", size=4)
    assert model.inputs == (
        TensorReport(name="image", datatype="UINT8", shape=(-1, 4, 4, 3)),
        TensorReport(name="tag", datatype="BYTES", shape=None),
    )
    assert model.outputs == (TensorReport(name="thumb", datatype="FP32", shape=(-1, 4)),)
    assert set(model.infer({})) == {"thumb", "more"}
    with pytest.raises(KeyError, match="size"):
        load("Sized", sise=4)


def test_a_handler_that_declares_nothing_accepts_anything() -> None:
    model = load("outer.Inner", a=1)
    assert (model.inputs, model.outputs) == (None, None)
    assert model.infer({"x": np.ones(2)})["x"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("handler", "message"),
    [
        (
            "worker_test_missing:X",
            "cannot import 'worker_test_missing'.* none of the folders .* has it: /cfg .the conf",
        ),
        (
            "worker_test_needy:X",
            "cannot import 'a_package_that_nobody_has' for the handler worker_test_needy:X: none of the folders that "
            f"were searched has it: /cfg .the configuration's., .*{re.escape(os.path.dirname(os.__file__))}",
        ),
        (
            "worker_test_handlers.inner:X",
            "cannot import 'worker_test_handlers.inner'.*'worker_test_handlers' is not a p",
        ),
        ("worker_test_handlers:Nothing", "has no Nothing"),
        ("worker_test_handlers:outer.Nothing", "has no outer.Nothing"),
        ("worker_test_handlers:instance", "is no class"),
        ("worker_test_handlers:NoInfer", "no method infer"),
        ("worker_test_handlers:BadDatatype", "inputs .*'float32' is none of BOOL, "),
        ("worker_test_handlers:BadShape", "outputs .*not -2"),
        ("worker_test_handlers:BadEntry", "inputs of the handler must be a list.*'shape' is missing"),
        ("worker_test_handlers:BadName", "1 is no name"),
        ("worker_test_handlers:NotAList", "outputs of the handler must be a list"),
        ("worker_test_handlers:Twice", "'x' is declared twice"),
    ],
)
def test_the_error_says_why_a_class_cannot_be_a_handler(handler: str, message: str) -> None:
    with pytest.raises(LoadError, match=message):
        HandlerModel(ModelSpec(name="m", handler=handler, module_folder="/cfg"), ["cpu:0"])


def test_an_error_in_the_handlers_module_is_passed_on() -> None:
    with pytest.raises(ZeroDivisionError):
        HandlerModel(ModelSpec(name="m", handler="worker_test_faulty:X"), ["cpu:0"])


@pytest.mark.parametrize(
    ("value", "dtype", "elements"),
    [
        (np.float32([1, 2]), np.float32, [1, 2]),
        ([1, 2], np.int64, [1, 2]),
        (1.5, np.float64, 1.5),
        ([True], np.bool_, [True]),
        (b"\0tail\0", object, b"\0tail\0"),
        ([b"a\0", b""], object, [b"a\0", b""]),
        ([["a\0"], ["bc"]], object, [["a\0"], ["bc"]]),
        ([], np.float64, []),
    ],
)
def test_array_likes_become_arrays(value: Any, dtype: Any, elements: Any) -> None:
    array = load("Returns", value={"y": value}).infer({})["y"]
    assert array.dtype == dtype
    assert array.tolist() == elements


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "returned NoneType, but a dict"),
        ([1], "returned list, but a dict"),
        ({1: 2}, "an output of the name 1"),
        ({"": 2}, "an output of the name ''"),
        ({"\ud800": 2}, r"an output of the name '\\ud800'"),
        ({"y": [[1], [2, 3]]}, "'y' is no array: ValueError"),
    ],
)
def test_anything_but_a_dict_of_arrays_is_an_error(value: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message) as raised:
        load("Returns", value=value).infer({})
    assert raised.value.reason == "output_invalid"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, "no output 'y', only none"),
        ({"z": 1}, "no output 'y', only 'z'"),
        ({"y": np.zeros((2, 4))}, r"'y' has the shape \[2, 4\], but \[-1, 3\] is declared"),
        ({"y": np.zeros(3)}, r"shape \[3\]"),
        ({"y": np.zeros((2, 3))}, None),
    ],
)
def test_declared_outputs_are_checked(value: Any, message: str | None) -> None:
    model = load("Returns", value=value)
    model.outputs = (TensorReport(name="y", datatype="FP64", shape=(-1, 3)),)
    if message is None:
        assert model.infer({})["y"].shape == (2, 3)
    else:
        with pytest.raises(ModelError, match=message):
            model.infer({})


def test_a_handler_gets_a_dict_of_its_own() -> None:
    inputs = {"x": np.ones(1)}
    load("Thief").infer(inputs)
    assert "x" in inputs


def test_a_refusal_of_the_handler_is_passed_on() -> None:
    with pytest.raises(InvalidRequest, match="too small"):
        load("Refusing").infer({})


def test_close_is_called_if_the_handler_has_it() -> None:
    model = load("Closing")
    model.close()
    assert sys.modules["worker_test_handlers"].Closing.closed == 1
    load("outer.Inner").close()
