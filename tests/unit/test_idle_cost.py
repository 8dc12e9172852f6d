"""What a daemon does again and again while it is idle costs few calls of the system."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from multitower.handler_files import handler_files
from multitower.supervisor.machine.process_limits import ProcessLimits

STANDARD = ["abc", "ast", "asyncio", "bisect", "collections", "copy", "csv", "dataclasses", "enum", "json", "math"]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often files have been looked at or read, by function."""
    counted: Counter[str] = Counter()

    def count(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def wrapper(*arguments: Any, **options: Any) -> Any:
            counted[name] += 1
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, wrapper)

    for name in ("stat", "listdir", "scandir"):
        count(os, name)
    count(Path, "read_text")
    return counted


def test_imports_of_installed_modules_cost_no_look_at_a_file(tmp_path: Path, calls: Counter[str]) -> None:
    (tmp_path / "handlers.py").write_text("".join(f"import {name}\n" for name in STANDARD) + "import beside\n")
    (tmp_path / "beside.py").write_text("import package\n")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("")
    assert handler_files(str(tmp_path), "handlers:M") == ["beside.py", "handlers.py", "package/__init__.py"]
    once = calls.total()
    calls.clear()
    extra = "".join(f"import nowhere_{number}\n" for number in range(100))
    (tmp_path / "beside.py").write_text(f"import package\n{extra}")
    assert len(handler_files(str(tmp_path), "handlers:M")) == 3
    assert calls.total() == once, "each import costs something"


def test_a_module_that_comes_is_found_at_the_next_look(tmp_path: Path) -> None:
    (tmp_path / "handlers.py").write_text("import beside\n")
    assert handler_files(str(tmp_path), "handlers:M") == ["handlers.py"]
    (tmp_path / "beside.py").write_text("")
    assert handler_files(str(tmp_path), "handlers:M") == ["beside.py", "handlers.py"]


def test_each_file_with_limits_of_memory_is_read_once(tmp_path: Path, calls: Counter[str]) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 1000 kB\nMemAvailable: 900 kB\n")
    (tmp_path / "proc/self/cgroup").write_text("0::/service\n")
    (tmp_path / "proc/self/mountinfo").write_text("1 0 0:1 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
    group = tmp_path / "sys/fs/cgroup/service"
    group.mkdir(parents=True)
    (group / "memory.current").write_text("100\n")
    (group / "memory.max").write_text("500000\n")
    (group / "memory.stat").write_text("inactive_file 10\nactive_file 20\nfile_mapped 5\nslab_reclaimable 3\n")
    limits = ProcessLimits(tmp_path)
    calls.clear()
    assert limits.memory().available_bytes == 500_000 - (100 - 28)
    # meminfo; of the group: current, stat, max and high; of the root group: current
    assert calls["read_text"] <= 6
