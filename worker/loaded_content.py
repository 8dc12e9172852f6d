"""Which files a model is loaded from: whether they are those of its specification, and do not change meanwhile.

`multitower/model_files.py` explains fingerprints. Where they leave it open whether contents are equal, all files are
read to find out. That happens in the worker's loading, not in the supervisor's event loop.
"""

from __future__ import annotations

from typing import Final

from multitower.model_files import compare_fingerprints, content_digest, fingerprint
from multitower.spec import FILES_CHANGED, ModelSpec

from .model_errors import LoadError

CHANGED_MEANWHILE: Final = "its files changed while they were loaded"


class FilesChangedError(LoadError):
    """The files are not those of the specification, or changed while they were loaded.

    Attributes:
        fingerprint: of the files, if they are others than those of the specification; "" otherwise.
    """

    def __init__(self, message: str, fingerprint: str = "") -> None:
        super().__init__(message)
        self.fingerprint = fingerprint


class LoadedContent:
    """The files of a model. Construct it before they are loaded, and call `finish` afterwards.

    Args:
        spec: the model.

    Attributes:
        same_content: whether the files were compared with those of the specification, and their contents are equal.

    Raises:
        FilesChangedError: the files are not those of the specification, which they must be.
        OSError: a file or folder cannot be read.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._before = fingerprint(spec)
        self._digest = ""
        self.same_content = self._is_expected()
        if spec.must_match and not self.same_content:
            raise FilesChangedError(FILES_CHANGED, self._before)

    def _is_expected(self) -> bool:
        spec = self._spec
        same = compare_fingerprints(spec.fingerprint, self._before)
        if same is None and spec.content_digest:
            self._digest = content_digest(spec)
            same = self._digest == spec.content_digest
        if same:
            self._digest = spec.content_digest
        return bool(same)

    def finish(self) -> str:
        """Returns the fingerprint of the files that were loaded.

        Raises:
            FilesChangedError: they changed while they were loaded.
            OSError: a file or folder cannot be read.
        """
        after = fingerprint(self._spec)
        if not self._is_as_before(after):
            raise FilesChangedError(CHANGED_MEANWHILE)
        return after

    def has_changed(self) -> bool:
        """Whether the files have changed since, or cannot be read any more; it may be why they could not be loaded."""
        try:
            return not self._is_as_before(fingerprint(self._spec))
        except OSError:
            return True

    def _is_as_before(self, after: str) -> bool:
        same = compare_fingerprints(self._before, after)
        if same is None and self._digest:
            same = content_digest(self._spec) == self._digest
        return bool(same)
