"""The versions of each model that workers serve, and the labels that name versions. Pure.

`request_plans` keeps it up to date, and looks up here which version a request is checked against.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final

from multitower.errors import Reason, make
from multitower.spec import ModelReport

MAX_DIGITS: Final = 20
"""Digits of a version number, which has 64 bits."""


class VersionCatalog:
    """The descriptions of the served versions, and the versions' labels, by model.

    Attributes:
        newest: for each model, the description for requests that name no version.
    """

    def __init__(self) -> None:
        self.newest: dict[str, ModelReport] = {}
        self._versions: dict[str, dict[str, ModelReport]] = {}
        self._labels: dict[str, Mapping[str, Sequence[str]]] = {}

    def describe(self, report: ModelReport, *, newest: bool) -> list[ModelReport | None]:
        """Adds a version that a worker has loaded, or replaces its description.

        Args:
            report: the description.
            newest: whether it is the newest version that the worker has.

        Returns:
            The descriptions that it replaces; None in the place of one that did not exist.
        """
        versions = self._versions.setdefault(report.name, {})
        before = [versions.get(report.version)]
        versions[report.version] = report
        if newest:
            before.append(self.newest.get(report.name))
            self.newest[report.name] = report
        return before

    def retain_versions(self, name: str, versions: Collection[str]) -> bool:
        """Removes the versions that are neither among these nor `newest`; returns whether there were any."""
        known = self._versions.get(name, {})
        gone = [version for version in known if version not in versions and known[version] is not self.newest[name]]
        for version in gone:
            del known[version]
        return bool(gone)

    def remove_versions(self, name: str) -> None:
        """Removes all versions of a model, which no worker serves any more; its labels stay."""
        self.newest.pop(name, None)
        self._versions.pop(name, None)

    def remove_model(self, name: str) -> None:
        """Removes a model with its labels."""
        self.remove_versions(name)
        self._labels.pop(name, None)

    def set_labels(self, name: str, labels: Mapping[str, Sequence[str]]) -> bool:
        """Sets the labels of a model.

        Args:
            name: the model's name.
            labels: for each label its versions; it names the first of them that is served. While a reload replaces
                workers, these are the new version and the former one.

        Returns:
            Whether the labels have changed.
        """
        differs = self._labels.get(name, {}) != labels
        self._labels[name] = labels
        return differs

    def versions(self, name: str) -> list[str]:
        """The served versions of the model, ascending."""
        return sorted(self._versions.get(name, ()), key=int)

    def report(self, name: str, version: str) -> ModelReport | None:
        """The description of a version; None if no worker has loaded it."""
        return self._versions.get(name, {}).get(version)

    def labels(self, name: str) -> dict[str, str]:
        """The version that each label of the model names, served or not."""
        return {label: self._labelled(name, label) or wanted[0] for label, wanted in self._labels.get(name, {}).items()}

    def find(self, name: str, version: str, label: str) -> ModelReport | None:
        """The description that a request is checked against; None if no worker has loaded the model.

        Args:
            name: the model's name.
            version: the version's number as the request has it; "" for the newest.
            label: the label in place of a number, or "".

        Raises:
            NotFound: `version_unknown`: the model has no such label, or the version is not served.
        """
        labels = self._labels.get(name, {})
        if label and label not in labels:
            known = f"only {', '.join(map(repr, labels))}" if labels else "nor any other"
            message = f"{name!r} has no version label {label[:128]!r}, {known}"
            raise make(Reason.VERSION_UNKNOWN, message, field="parameters.version_label")
        versions = self._versions.get(name)
        if not (version or label) or not versions:
            return self.newest.get(name)
        found = self._labelled(name, label) if label else self._numbered(name, version)
        if found is not None:
            return versions[found]
        served = ", ".join(self.versions(name))
        if label:
            message = (
                f"the label {label[:128]!r} of {name!r} is version {labels[label][0]}, but served is only {served}"
            )
            raise make(Reason.VERSION_UNKNOWN, message, field="parameters.version_label")
        message = f"{name!r} has no version {version[:40]!r}, only {served}"
        raise make(Reason.VERSION_UNKNOWN, message, field="model_version")

    def _labelled(self, name: str, label: str) -> str | None:
        """The served version that a label names, or None."""
        found = (self._numbered(name, version) for version in self._labels.get(name, {}).get(label, ()))
        return next((version for version in found if version is not None), None)

    def _numbered(self, name: str, version: str) -> str | None:
        """The served version of that number, or None. Folders may be named 001."""
        versions = self._versions.get(name, {})
        if version in versions:
            return version
        if not (version.isascii() and version.isdigit() and len(version) <= MAX_DIGITS):
            return None
        return next((known for known in versions if int(known) == int(version)), None)
