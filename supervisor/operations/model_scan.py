"""Reads the folders and files of models: which versions there are, and the fingerprint of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from multitower.model_files import fingerprint
from multitower.spec import ONLY_VERSION, ModelSpec

from ..config.version_folders import Policy, versions_of
from .version_settling import versions_to_scan


@dataclass(frozen=True, slots=True)
class Target:
    """A model to scan.

    Attributes:
        name: the model's name.
        spec: the model, without a version.
        policy: which of the versions the model serves.
        served: versions that are served.
        refused: versions that could not be loaded.
        numbered: whether it has numbered versions; otherwise it is a single one, `ONLY_VERSION`.
    """

    name: str
    spec: ModelSpec
    policy: Policy
    served: frozenset[str]
    refused: frozenset[str]
    numbered: bool = True


Scan = Mapping[str, str] | OSError
"""The fingerprint of each version's files, by version; or why they cannot be read."""


def scan_models(targets: Sequence[Target]) -> dict[str, Scan]:
    """Scans models; it may block, so call it in a thread.

    Returns:
        The scan of each model, by name, without models whose numbered versions were replaced by a single model.
    """
    scans: dict[str, Scan] = {}
    for target in targets:
        try:
            scan = _scan(target)
        except OSError as error:
            scan = error
        if scan is not None:
            scans[target.name] = scan
    return scans


def _scan(target: Target) -> Scan | None:
    if not target.numbered:
        found = fingerprint(target.spec)
        return {ONLY_VERSION: found} if found else {}
    assert target.spec.path is not None  # only a path has versions
    versions = versions_of(target.spec.path)
    if versions is None:
        return None
    wanted = versions_to_scan(versions, target.policy, target.served, target.refused)
    return {version: fingerprint(replace(target.spec, version=version)) for version in wanted}
