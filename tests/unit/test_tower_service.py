"""A worker that cannot go on exits, whatever user code did to its streams."""

from __future__ import annotations

import io
import os
import sys

import pytest

from multitower.worker.tower_service import _exit


class Exited(Exception):
    """Stands in for the end of the process."""


@pytest.mark.parametrize("name", ["stdout", "stderr"])
@pytest.mark.parametrize("replaced", [False, True])
def test_a_worker_exits_although_user_code_closed_its_output(
    name: str, replaced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes: list[int] = []

    def end(code: int) -> None:
        codes.append(code)
        raise Exited

    stream = io.TextIOWrapper(io.BytesIO())
    stream.close()
    with monkeypatch.context() as patch:
        patch.setattr(sys, name, None if replaced else stream)
        patch.setattr(os, "_exit", end)
        with pytest.raises(Exited):
            _exit(3)
    assert codes == [3]
