"""The client refuses what gevent and eventlet put in the place of threads and select, in words."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from multitower import AsyncClient, Client


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(
    ("library", "module", "function", "patched"),
    [
        ("gevent", "gevent.monkey", "is_module_patched", "threading"),
        ("gevent", "gevent.monkey", "is_module_patched", "select"),
        ("eventlet", "eventlet.patcher", "is_monkey_patched", "thread"),
        ("eventlet", "eventlet.patcher", "is_monkey_patched", "select"),
    ],
)
def test_patched_primitives_are_refused_by_name(
    kind: type, library: str, module: str, function: str, patched: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in = ModuleType(module)
    setattr(stand_in, function, lambda name: name == patched)
    monkeypatch.setitem(sys.modules, module, stand_in)
    with pytest.raises(RuntimeError, match=f"{library} has patched {patched}"):
        kind("tcp://127.0.0.1:1")


@pytest.mark.parametrize("module", ["gevent.monkey", "eventlet.patcher"])
def test_an_imported_library_that_patches_nothing_is_no_obstacle(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = ModuleType(module)
    for function in ("is_module_patched", "is_monkey_patched"):
        setattr(stand_in, function, lambda name: False)
    monkeypatch.setitem(sys.modules, module, stand_in)
    Client("tcp://127.0.0.1:1").close()
