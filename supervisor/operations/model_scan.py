"""Reads the folders and files of models: which versions there are, and the fingerprint of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from multitower.model_files import fingerprint
from multitower.spec import ONLY_VERSION, ModelSpec

from ..config.version_folders import Policy, list_versions
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

    @property
    def key(self) -> tuple[str, str | None]:
        """Its name and path: after a reload, the model may have another path."""
        return self.name, self.spec.path


@dataclass(frozen=True, slots=True)
class FolderScan:
    """What a scan of a model has found.

    Attributes:
        prints: the fingerprint of each version's files, by version.
        unreadable: why the files of other versions cannot be read, by version.
    """

    prints: Mapping[str, str]
    unreadable: Mapping[str, str]


def scan_model(target: Target) -> FolderScan | None:
    """Scans a model; it may block, so call it in a thread.

    Returns:
        The scan; None if the model's numbered versions were replaced by a single model.

    Raises:
        OSError: the model cannot be read.
    """
    if not target.numbered:
        found = fingerprint(target.spec)
        return FolderScan({ONLY_VERSION: found} if found else {}, {})
    assert target.spec.path is not None  # only a path has versions
    versions = list_versions(target.spec.path)
    if versions is None:
        return None
    prints: dict[str, str] = {}
    unreadable = dict(versions.unreadable)
    for version in versions_to_scan(versions.found, target.policy, target.served, target.refused):
        try:
            prints[version] = fingerprint(replace(target.spec, version=version))
        except OSError as error:  # it costs this version, and no other one
            unreadable[version] = f"it cannot be read: {error.strerror or error}"
    return FolderScan(prints, unreadable)
