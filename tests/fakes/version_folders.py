"""Folders of versions without TensorFlow."""

from __future__ import annotations

from pathlib import Path


def version(folder: Path, number: str, weights: bytes = b"w") -> Path:
    """A version's folder, as far as anybody but TensorFlow looks at it."""
    path = folder / number
    (path / "variables").mkdir(parents=True)
    (path / "saved_model.pb").write_bytes(b"graph")
    (path / "variables" / "variables.data").write_bytes(weights)
    return path
