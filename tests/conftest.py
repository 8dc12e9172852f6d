from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from fake_gpus import FakeGpus, build_fakes
from hypothesis import HealthCheck, settings

# `nohup` lets processes ignore it, and all that they start: tests send it to daemons and tools.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

HIDDEN = Path(__file__).with_name("hidden")

# How long an example takes says nothing where other tests, and others' programs, have the cores meanwhile.
settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared")


@pytest.fixture
def all_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets programs that the test starts import what tests/hidden hides."""
    folders = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(folder for folder in folders if Path(folder) != HIDDEN))


@pytest.fixture(scope="session")
def fake_gpus(tmp_path_factory: pytest.TempPathFactory) -> FakeGpus:
    """Stand-ins for NVIDIA's libraries, compiled once; `.environment(log_file)` lets a subprocess use them."""
    return FakeGpus(build_fakes(tmp_path_factory.mktemp("fake_gpus")))
