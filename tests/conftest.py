from __future__ import annotations

import gc
import os
import signal
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from fake_gpus import FakeGpus, build_fakes
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from running import Running

# `nohup` lets processes ignore SIGHUP, and a script lets those in its background ignore SIGINT. All processes that they
# start ignore them, too, but tests send both to daemons and tools.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)

HIDDEN = Path(__file__).with_name("hidden")

SHARE_A_DAEMON = ("test_serving.py", "test_real_models.py", "test_tensorflow_serving_clients.py")
"""Files that use `daemon_of_all_models`: with `--dist loadfile` one process runs all of them."""

SLOW_FOLDERS = ("gateway", "packaging", "tensorflow")
SLOW_S = 600
"""Seconds for a test of these folders, with its fixtures, instead of pytest-timeout's `timeout` in pyproject.toml. They
import TensorFlow or run a compiler, which takes minutes where the cores are slow and other tests use them."""

# How long an example takes says nothing where other tests, and others' programs, have the cores meanwhile.
settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Without garbage collections, which find nothing and take a sixth of the time of each pytest process.

    What has been imported and collected stays to the end, so the collector need not visit it later either.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    slow: dict[Path, list[pytest.Item]] = {}
    others: dict[Path, list[pytest.Item]] = {}
    for item in items:
        is_slow = item.path.parent.name in SLOW_FOLDERS
        (slow if is_slow else others).setdefault(item.path, []).append(item)
        if is_slow and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(SLOW_S))
    # Files that compute go between files that wait, so that neither all nor none of the processes want a core. The last
    # ones wait, and are short.
    files = [(0.85 * number / len(slow), file) for number, file in enumerate(slow)]
    files += [(number / len(others), file) for number, file in enumerate(others)]
    items[:] = [item for _, file in sorted(files, key=lambda each: each[0]) for item in (slow | others)[file]]


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `--dist loadfile`, files that share a daemon count as one."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "daemon_of_all_models" if Path(file).name in SHARE_A_DAEMON else file

    return Scheduling(config, log)


@pytest.fixture
def all_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets programs that the test starts import what tests/hidden hides."""
    folders = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(folder for folder in folders if Path(folder) != HIDDEN))


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder for sockets. Their paths are limited to 107 bytes, and those of `tmp_path` are long."""
    with tempfile.TemporaryDirectory(prefix="mt-") as folder:
        yield Path(folder)


@pytest.fixture
def tmp_socket(short_folder: Path) -> str:
    """An ipc endpoint where nothing listens yet."""
    return f"ipc://{short_folder}/front.sock"


@pytest.fixture(scope="session")
def fake_gpus(tmp_path_factory: pytest.TempPathFactory) -> FakeGpus:
    """Stand-ins for NVIDIA's libraries, compiled once; `.environment(log_file)` lets a subprocess use them."""
    return FakeGpus(build_fakes(tmp_path_factory.mktemp("fake_gpus")))


@pytest.fixture(scope="session")
def all_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of models of every kind; see tests/fakes/all_models.py."""
    import all_models

    folder = tmp_path_factory.mktemp("models")
    all_models.make(folder)
    return folder


@pytest.fixture(scope="session")
def daemon_of_all_models(all_models: Path) -> Iterator[Running]:
    """Serves them; no test may change its state or end a worker."""
    from all_models import running

    with running(all_models) as daemon:
        yield daemon
