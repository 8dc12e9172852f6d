"""The versions of models, as workers have described them, and the labels that stand for versions. Pure.

Admission keeps it up to date, and asks it what a request that names a version or a label is checked against.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final

from multitower.errors import Reason, make
from multitower.spec import ModelReport

MAX_DIGITS: Final = 20
"""Of a version's number, which has 64 bits."""


class VersionCatalog:
    """What can be asked for, by the model's name, a version and a label.

    Attributes:
        newest: of each model what requests are checked against that name no version.
    """

    def __init__(self) -> None:
        self.newest: dict[str, ModelReport] = {}
        self._versions: dict[str, dict[str, ModelReport]] = {}
        self._labels: dict[str, Mapping[str, Sequence[str]]] = {}

    def describe(self, report: ModelReport, *, newest: bool) -> list[ModelReport | None]:
        """A worker has loaded a version.

        Args:
            report: its description.
            newest: it is the newest of those that the worker has.

        Returns:
            What the report takes the place of; None where there was nothing.
        """
        versions = self._versions.setdefault(report.name, {})
        before = [versions.get(report.version)]
        versions[report.version] = report
        if newest:
            before.append(self.newest.get(report.name))
            self.newest[report.name] = report
        return before

    def keep(self, name: str, versions: Collection[str]) -> bool:
        """Only these versions are left, and the newest described last; True where there were others."""
        known = self._versions.get(name, {})
        gone = [version for version in known if version not in versions and known[version] is not self.newest[name]]
        for version in gone:
            del known[version]
        return bool(gone)

    def forget(self, name: str) -> None:
        """No worker has the model any more; one may again."""
        self.newest.pop(name, None)
        self._versions.pop(name, None)

    def remove(self, name: str) -> None:
        """There is no such model any more."""
        self.forget(name)
        self._labels.pop(name, None)

    def set_labels(self, name: str, labels: Mapping[str, Sequence[str]]) -> bool:
        """What the labels of a model stand for: for each label versions, of which the first that is served counts.

        While a reload replaces worker after worker there are two: what a label stood for, and what it is to stand for.

        Returns:
            Whether that differs from before.
        """
        differs = self._labels.get(name, {}) != labels
        self._labels[name] = labels
        return differs

    def versions(self, name: str) -> list[str]:
        """Those of the model that are served, ascending."""
        return sorted(self._versions.get(name, ()), key=int)

    def report(self, name: str, version: str) -> ModelReport | None:
        """The description of a version; None while no worker has loaded it."""
        return self._versions.get(name, {}).get(version)

    def labels(self, name: str) -> dict[str, str]:
        """The version that each label of the model stands for, whether that is served or not."""
        return {label: self._labelled(name, label) or wanted[0] for label, wanted in self._labels.get(name, {}).items()}

    def find(self, name: str, version: str, label: str) -> ModelReport | None:
        """The description of a model, the newest or that of a version; None while no worker has loaded it.

        Args:
            name: the model's.
            version: its number, or "".
            label: of a version, or "".

        Raises:
            NotFound: `version_unknown`.
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
        """The served version that a label stands for."""
        found = (self._numbered(name, version) for version in self._labels.get(name, {}).get(label, ()))
        return next((version for version in found if version is not None), None)

    def _numbered(self, name: str, version: str) -> str | None:
        """The served version of that number: its folder may be named 001."""
        versions = self._versions.get(name, {})
        if version in versions:
            return version
        if not (version.isascii() and version.isdigit() and len(version) <= MAX_DIGITS):
            return None
        return next((known for known in versions if int(known) == int(version)), None)
