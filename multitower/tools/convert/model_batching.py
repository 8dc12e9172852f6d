"""Reads the batching parameters of one model: `batching_params.pbtxt` in the folder of a version.

TensorFlow Serving reads this file with `--enable_per_model_batching_parameters`. A model without it is not batched.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from multitower.supervisor.config.version_folders import Policy, chosen_versions
from multitower.tools.convert.batching import BatchingParameters, convert_batching
from multitower.tools.convert.fields import Note
from multitower.tools.convert.reading import read_message

FILE: Final = "batching_params.pbtxt"


def read_model_batching(path: Path, policy: Policy) -> BatchingParameters:
    """Reads the file of the highest version that is served: a model has the same parameters for all versions here.

    Args:
        path: a folder of numbered versions, or a SavedModel.
        policy: which versions are served.

    Returns:
        The parameters, with notes on what was not carried over; `max_batch_size` is 0 if there is no file.

    Raises:
        ConfigError: the file cannot be read, or is malformed.
    """
    try:
        versions = chosen_versions(path, policy)
    except OSError as error:
        text = f"the model's folder cannot be read ({error.strerror}): requests run unbatched until the next reload"
        return BatchingParameters(max_batch_size=0, notes=[Note(str(path), 1, text)])
    *others, file = [path / (version or "") / FILE for version in versions]
    parameters = BatchingParameters(max_batch_size=0)
    if file.is_file():
        parameters = convert_batching(read_message(file), str(file))
    content = _content(file)
    different = [other.parent.name for other in others if _content(other) != content]
    if different:
        used = file.parent.name
        text = (
            f"the batching parameters of version {used} apply to all versions; those of {', '.join(different)} differ"
        )
        parameters.notes.append(Note(str(file), 1, text))
    return parameters


def _content(file: Path) -> bytes | None:
    """The content of a file; None if there is none, or it cannot be read."""
    try:
        return file.read_bytes()
    except OSError:
        return None
