from __future__ import annotations

import tempfile
from collections.abc import Iterator

import pytest


@pytest.fixture
def tmp_socket() -> Iterator[str]:
    """An ipc endpoint where nothing listens yet. Not under `tmp_path`: ipc paths are limited to 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="mt-") as folder:
        yield f"ipc://{folder}/front.sock"
