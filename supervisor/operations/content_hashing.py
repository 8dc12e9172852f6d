"""Digests of what large models contain, for files that look different but may have equal contents.

Hashing is a background job at a limited rate: a model may have a hundred gigabytes, and its files are read by workers,
too. Files that were hashed before, and have not been touched since, are not read again.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, replace
from math import inf
from typing import Final

from multitower.model_files import (
    ModelFile,
    compare_fingerprints,
    content_digest,
    fingerprint,
    hash_whole_file,
    is_content_known,
    model_files,
)
from multitower.spec import ModelSpec

from ..loop.background import BackgroundJobs
from ..loop.log import event
from ..settings import ActiveSettings, Settings
from ..workers.device_waits import LOADING
from ..workers.known_contents import KnownContents
from ..workers.manager import WorkerManager

log = logging.getLogger("multitower.daemon")

BYTES_PER_SECOND: Final = 256 << 20

MAX_COMPARED_BYTES: Final = 2 << 30
"""Bytes of a model that a reload hashes at most, since an operator waits for it. A larger one counts as changed."""

COMPARING_SHARE: Final = 0.5
"""How much of the time that an order may take to read files it may spend until contents are compared."""

RETRY_S: Final = 60.0
"""Seconds until files that could not be hashed are tried again."""

_CACHED_FILES: Final = 4096


@dataclass(frozen=True, slots=True)
class HashedContent:
    """The contents of a model at one time.

    Attributes:
        fingerprint: of the files that were hashed.
        digest: see `model_files.content_digest`.
    """

    fingerprint: str
    digest: str


class ContentHasher:
    """Hashes the contents of models. Any thread may use it.

    Args:
        bytes_per_second: how fast it reads at most.
    """

    def __init__(self, bytes_per_second: float = BYTES_PER_SECOND) -> None:
        self._bytes_per_second = bytes_per_second
        self._lock = threading.Lock()
        self._digests: OrderedDict[tuple[str, int, int, int, int, int], str] = OrderedDict()

    def hash_content(self, spec: ModelSpec, until: float = inf) -> HashedContent | None:
        """Hashes all files of a model, which may take minutes; None if they changed meanwhile.

        Args:
            spec: the model.
            until: when hashing gives up, in monotonic seconds.

        Raises:
            TimeoutError: hashing the files at this rate takes longer than `until`.
            OSError: a file or folder cannot be read.
        """
        before = fingerprint(spec)
        digest = content_digest(spec, functools.partial(self._hash_file, until=until))
        return HashedContent(before, digest) if fingerprint(spec) == before else None

    def _hash_file(self, file: ModelFile, until: float) -> str:
        status = file.status
        times = status.st_mtime_ns, status.st_ctime_ns
        key = (file.resolved, status.st_dev, status.st_ino, status.st_size, *times)
        with self._lock:
            known = self._digests.get(key)
            if known is not None:
                self._digests.move_to_end(key)
                return known
        started, read = time.monotonic(), 0

        def pause(size: int) -> None:
            nonlocal read
            read += size
            now = time.monotonic()
            next_read = max(now, started + read / self._bytes_per_second)
            if next_read > until:
                raise TimeoutError
            time.sleep(next_read - now)

        digest = hash_whole_file(file, pause)
        with self._lock:
            self._digests[key] = digest
            if len(self._digests) > _CACHED_FILES:
                self._digests.popitem(last=False)
        return digest


class ContentBaseline:
    """Hashes what is served, so that files which are touched or copied later can be compared with it.

    One model after the other, and never while a worker loads.

    Args:
        settings: the settings in force.
        manager: gets the digests.
        background: runs the hashing.
        hasher: hashes.
    """

    def __init__(
        self,
        settings: ActiveSettings,
        manager: WorkerManager,
        background: BackgroundJobs,
        hasher: ContentHasher,
    ) -> None:
        self._settings = settings
        self._manager = manager
        self._background = background
        self._hasher = hasher
        self._hashing = False
        self._retry_at: dict[str, float] = {}

    def tick(self, now: float) -> None:
        """Begins to hash a model of which there is no digest yet.

        Args:
            now: monotonic seconds.
        """
        loading = any(slot.state in LOADING or slot.next_process is not None for slot in self._manager.slots)
        if self._hashing or loading:
            return
        known = self._manager.known_contents
        self._retry_at = {each: at for each, at in self._retry_at.items() if at > now}
        for spec in self._settings.current.worker_settings.models:
            if is_content_known(spec.fingerprint) or known.digest(spec.fingerprint):
                continue
            if spec.fingerprint not in self._retry_at:
                self._hashing = True
                self._background.run(
                    functools.partial(self._hasher.hash_content, spec), functools.partial(self._hashed, spec)
                )
                return

    def _hashed(self, spec: ModelSpec, outcome: HashedContent | Exception | None) -> None:
        self._hashing = False
        known = self._manager.known_contents
        if isinstance(outcome, HashedContent) and known.first(outcome.fingerprint) == known.first(spec.fingerprint):
            known.record_digest(spec.fingerprint, outcome.digest)
            return
        if isinstance(outcome, Exception) and not isinstance(outcome, OSError):
            fields = {"model": spec.name, "version": spec.key[1]}
            log.error("the files of a model could not be hashed", exc_info=outcome, extra={"fields": fields})
        self._retry_at[spec.fingerprint] = time.monotonic() + RETRY_S


def comparing_ends(limit_s: float) -> float:
    """Returns until when an order may compare contents, in monotonic seconds.

    Args:
        limit_s: seconds that the order may take to read files, from now on.
    """
    return time.monotonic() + limit_s * COMPARING_SHARE


def keep_fingerprints(
    new: Settings, present: Settings, contents: KnownContents, hasher: ContentHasher, until: float
) -> Settings:
    """Returns new settings in which models whose files were only touched or copied do not count as changed.

    They have the present fingerprints, and others the first one of equal contents, as in `KnownContents`. It may read
    files: call it in a thread.

    Args:
        new: the new settings.
        present: the settings in force.
        contents: a snapshot of what is known of contents.
        hasher: hashes files.
        until: when hashing gives up, in monotonic seconds; models that were not compared by then count as changed.
    """
    former = {spec.key: spec for spec in present.models}

    def keep(spec: ModelSpec) -> ModelSpec:
        known = former.get(spec.key)
        same_files = known is not None and (known.path, known.handler) == (spec.path, spec.handler)
        if known is not None and same_files and _same_content(known, spec, contents, hasher, until):
            return replace(spec, fingerprint=known.fingerprint)
        return replace(spec, fingerprint=contents.first(spec.fingerprint))

    models = tuple(map(keep, new.worker_settings.models))
    return replace(
        new,
        worker_settings=replace(new.worker_settings, models=models),
        unloaded=tuple(map(keep, new.unloaded)),
    )


def _same_content(
    known: ModelSpec, spec: ModelSpec, contents: KnownContents, hasher: ContentHasher, until: float
) -> bool:
    if contents.first(known.fingerprint) == contents.first(spec.fingerprint):
        return True
    same = compare_fingerprints(known.fingerprint, spec.fingerprint)
    digest = contents.digest(known.fingerprint)
    if same is not None or not digest:
        return bool(same)
    try:
        if sum(file.status.st_size for file in model_files(spec)) > MAX_COMPARED_BYTES:
            return False
        found = hasher.hash_content(spec, until)
    except TimeoutError:
        name, version = spec.key
        message = "files of a model count as changed: there was no time to compare their contents"
        event(log, logging.INFO, message, model=name, version=version)
        return False
    except OSError:
        return False  # loading them reports it
    return found is not None and found == HashedContent(spec.fingerprint, digest)
