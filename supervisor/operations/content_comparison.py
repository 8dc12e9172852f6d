"""Whether versions whose files look different have different contents; otherwise workers need not load them again."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace

from multitower.model_files import compare_fingerprints
from multitower.spec import ModelSpec

from ..loop.log import event
from .content_hashing import HashedContent
from .order_queue import OrderContext

log = logging.getLogger("multitower.daemon")


class ContentComparison:
    """Compares what the files of models contain with what is served.

    Args:
        context: the parts of the daemon.
    """

    def __init__(self, context: OrderContext) -> None:
        self._known = context.manager.known_contents
        self._background = context.background
        self._hasher = context.hasher
        self._comparing: set[tuple[str, str]] = set()
        self._different: set[tuple[str, str]] = set()

    def differs(self, served: Iterable[ModelSpec], found: Mapping[str, str]) -> bool:
        """Returns whether versions differ from what is served; False also while contents are being compared.

        Equal contents are recorded in the worker manager's `known_contents`.

        Args:
            served: the specifications of the served versions of a model.
            found: the fingerprint of each version that is to be served, by version.
        """
        specs = {spec.key[1]: spec for spec in served}
        if specs.keys() != found.keys():
            return True
        different = [self._is_different(spec, found[version]) for version, spec in specs.items()]  # begins all jobs
        return any(different)

    def _is_different(self, spec: ModelSpec, found: str) -> bool:
        pair = spec.fingerprint, found
        same = compare_fingerprints(*pair)
        if same is None and not self._known.digest(spec.fingerprint):
            same = False  # nobody can tell any more
        if same:
            if found != spec.fingerprint:
                self._record_equal(spec, found)
            return False
        if same is False or pair in self._different:
            return True
        if pair not in self._comparing:
            self._comparing.add(pair)
            self._background.run(
                functools.partial(self._hasher.hash_content, replace(spec, fingerprint=found)),
                functools.partial(self._compared, spec, found),
            )
        return False

    def _compared(self, spec: ModelSpec, found: str, outcome: HashedContent | Exception | None) -> None:
        pair = spec.fingerprint, found
        self._comparing.discard(pair)
        if isinstance(outcome, Exception):
            if not isinstance(outcome, OSError):
                fields = {"model": spec.name, "version": spec.key[1]}
                log.error("the files of a model could not be hashed", exc_info=outcome, extra={"fields": fields})
            self._different.add(pair)  # loading them shows what is wrong
        elif outcome is not None and outcome.fingerprint == found:
            if outcome.digest == self._known.digest(spec.fingerprint):
                self._record_equal(spec, found)
            else:
                self._different.add(pair)

    def _record_equal(self, spec: ModelSpec, found: str) -> None:
        self._known.record_equal(spec.fingerprint, found)
        name, version = spec.key
        message = "files of a model were written again with equal contents"
        event(log, logging.INFO, message, model=name, version=version)
