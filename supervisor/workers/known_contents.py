"""What is known of the contents of models: which fingerprints stand for equal contents, and digests of contents.

For the event loop's thread; other threads get a `snapshot`. `multitower/model_files.py` explains fingerprints.
"""

from __future__ import annotations

from typing import Final, Self

_MAX_ENTRIES: Final = 4096


class KnownContents:
    """Fingerprints and digests of contents, by fingerprint.

    The files of a model may be touched or copied without a change of their contents. They have another fingerprint
    then, which is recorded as an alias of the first one. The oldest entries are forgotten when there are too many:
    the contents are compared again.
    """

    def __init__(self) -> None:
        self._digests: dict[str, str] = {}
        self._first: dict[str, str] = {}
        self._latest: dict[str, str] = {}

    def snapshot(self) -> Self:
        """Returns a copy, for another thread."""
        copy = type(self)()
        copy._digests, copy._first, copy._latest = dict(self._digests), dict(self._first), dict(self._latest)
        return copy

    def digest(self, fingerprint: str) -> str:
        """Returns the digest of the contents with this fingerprint; "" while it is unknown."""
        return self._digests.get(self.first(fingerprint), "")

    def first(self, fingerprint: str) -> str:
        """Returns the fingerprint that was recorded first for the same contents, which may be the given one."""
        return self._first.get(fingerprint, fingerprint)

    def latest(self, fingerprint: str) -> str:
        """Returns the fingerprint that was recorded last for the same contents, which may be the given one."""
        first = self.first(fingerprint)
        return self._latest.get(first, first)

    def record_digest(self, fingerprint: str, digest: str) -> None:
        """Records the digest of the contents with this fingerprint."""
        self._digests[self.first(fingerprint)] = digest
        _drop_oldest(self._digests)

    def record_equal(self, fingerprint: str, found: str) -> None:
        """Records that another fingerprint was found for the same contents."""
        first = self.first(fingerprint)
        if found != first:
            self._first[found] = first
            _drop_oldest(self._first)
        self._latest[first] = found
        _drop_oldest(self._latest)


def _drop_oldest(entries: dict[str, str]) -> None:
    if len(entries) > _MAX_ENTRIES:
        del entries[next(iter(entries))]
