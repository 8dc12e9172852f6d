"""The public names. A change here is a change for applications."""

from __future__ import annotations

import importlib.metadata
import inspect
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import multitower.client
from multitower import AsyncClient, Client

NAMES = [
    "AsyncClient",
    "Cancelled",
    "Client",
    "Code",
    "ConnectError",
    "DeadlineExceeded",
    "Forbidden",
    "InternalError",
    "InvalidEndpoint",
    "InvalidKey",
    "InvalidRequest",
    "ModelError",
    "MultitowerError",
    "NotFound",
    "Outputs",
    "Overloaded",
    "Poisoned",
    "Reason",
    "Unauthenticated",
    "Unavailable",
    "__version__",
]

ROOT = Path(__file__).parents[2]

CONSTRUCTOR = (
    "endpoint=None timeout=30.0 connect_timeout=5.0 max_outstanding=1000 retries=2 shared_memory=True peer_timeout=30.0"
    " key=None server_key=None"
)
INFER = "model inputs outputs=None version='' timeout=None priority=0 signature='' version_label='' trace=None"
METHODS = {
    "close": "",
    "empty": "shape dtype=<class 'numpy.float32'>",
    "endpoint": None,
    "infer": INFER,
    "live": "",
    "metadata": "model version='' version_label=''",
    "metrics": "format='prometheus'",
    "model_config": "model version='' version_label=''",
    "model_ready": "model version='' version_label=''",
    "ready": "",
    "server_metadata": "",
    "server_ready": "",
    "statistics": "model=None version='' version_label=''",
    "status": "events=False",
    "submit": INFER,
    "wait_until_ready": "timeout=60.0",
}


def test_the_command_line_handles_signals_before_it_imports_what_takes_long() -> None:
    code = "import sys, multitower.cli; print({'asyncio', 'click', 'numpy', 'zmq'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"


def test_public_names_and_modules_are_there_without_further_imports() -> None:
    code = "import multitower; multitower.errors.NotFound, multitower.client.Client; from multitower import *; Client"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="has no attribute 'no_such_name'"):
        _ = multitower.no_such_name
    assert set(NAMES) <= set(dir(multitower))


def test_the_public_names_are_these() -> None:
    assert sorted(multitower.__all__) == NAMES
    assert all(hasattr(multitower, name) for name in NAMES)


def test_the_client_package_exports_both_clients_and_the_type_of_outputs() -> None:
    assert sorted(multitower.client.__all__) == ["AsyncClient", "Client", "Outputs"]
    assert (multitower.client.Client, multitower.client.AsyncClient) == (Client, AsyncClient)


def test_the_version_is_that_of_the_package() -> None:
    assert multitower.__version__ == importlib.metadata.version("multitower")


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_the_methods_of_the_clients_are_these(kind: type) -> None:
    assert {name for name in dir(kind) if not name.startswith("_")} == set(METHODS)
    assert _signature(kind) == CONSTRUCTOR
    for name, wanted in METHODS.items():
        if wanted is not None:
            assert _signature(getattr(kind, name)) == wanted, name


def _signature(function: object) -> str:
    parameters = inspect.signature(function).parameters.values()  # type: ignore[arg-type]
    return " ".join(
        p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in parameters if p.name != "self"
    )


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_every_public_method_has_a_docstring(kind: type) -> None:
    assert all(getattr(kind, name).__doc__ for name in METHODS)


def test_importing_needs_numpy_and_pyzmq_only() -> None:
    program = """
import sys
import multitower
allowed = {"multitower", "numpy", "zmq", "cython_runtime", *sys.stdlib_module_names}
names = {name.split(".")[0] for name in sys.modules}
print(sorted(name for name in names - allowed if not name.startswith(("_", "__editable__", "sitecustomize"))))
"""
    done = subprocess.run([sys.executable, "-S", "-c", _with_path(program)], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def _with_path(program: str) -> str:
    # Without site-packages' .pth files, which import what other packages want at every start.
    return f"import sys; sys.path[:] = {[entry for entry in sys.path if entry]!r}\n{program}"


def test_the_wheel_has_every_package() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {  # the links in multitower/ are not followed
        "multitower": ROOT / "multitower",
        "multitower.supervisor": ROOT / "supervisor",
        "multitower.worker": ROOT / "worker",
    }
    found = [
        ".".join((name, *path.parent.relative_to(folder).parts))
        for name, folder in folders.items()
        for path in folder.rglob("__init__.py")
        if name != "multitower" or path.relative_to(folder).parts[0] not in ("supervisor", "worker")
    ]
    assert sorted(listed) == sorted(found)
