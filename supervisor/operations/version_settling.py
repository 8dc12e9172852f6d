"""Which versions of one model are to be served, as its folder changes. Pure.

`version_watch.py` scans the folder again and again; the scans and the time come in here. A new version counts once its
files have not changed for a while, so that one which is still being copied is not loaded. A version that could not be
loaded is skipped until its files change.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from math import inf
from typing import Final

from ..config.version_folders import Policy


@dataclass(frozen=True, slots=True)
class Refused:
    """A version that could not be loaded.

    Attributes:
        fingerprint: of its files when it was tried.
        cause: why it could not be loaded.
        retry_at: when it is tried again although its files have not changed, in monotonic seconds; None for never.
    """

    fingerprint: str
    cause: str
    retry_at: float | None = None


FIRST_RETRY_S: Final = 2.0
"""Seconds until a version that could not be loaded for a temporary reason is tried again; doubled each time."""

MAX_RETRY_S: Final = 300.0
"""Seconds from one such attempt to the next at most."""

_CHANGE: Final = ""
"""Stands for the whole change where versions are counted."""


class VersionSettling:
    """The versions of one model.

    Attributes:
        refused: versions that could not be loaded, until their files change, or the reason may have passed.
    """

    def __init__(self) -> None:
        self.refused: dict[str, Refused] = {}
        self._since: dict[str, tuple[str, float]] = {}  # each version's fingerprint, and since when it has had it
        self._failed_change: Mapping[str, str] | None = None
        self._change_retry_at = inf  # when the failed change is tried again, in monotonic seconds
        self._retries: dict[str, int] = {}  # how often each version, or the change, failed for a temporary reason

    def record_scan(self, found: Mapping[str, str], now: float) -> None:
        """Records what a scan of the folder has found.

        Args:
            found: the fingerprint of each version's files, by version.
            now: monotonic seconds.
        """
        self._since = {
            version: known if (known := self._since.get(version)) and known[0] == print_ else (print_, now)
            for version, print_ in found.items()
        }
        if now >= self._change_retry_at:
            self._failed_change, self._change_retry_at = None, inf
        for version, refused in list(self.refused.items()):
            if found.get(version, "") != refused.fingerprint:
                del self.refused[version]
                self._retries.pop(version, None)
            elif refused.retry_at is not None and now >= refused.retry_at:
                del self.refused[version]
                self._failed_change = None

    def wanted_change(
        self, policy: Policy, served: Mapping[str, str], settle_s: float, now: float
    ) -> dict[str, str] | None:
        """Returns the versions to serve instead of the present ones, with their fingerprints; None for no change.

        Args:
            policy: which of the versions the model serves.
            served: the fingerprint with which each served version was loaded, by version.
            settle_s: seconds for which files must not have changed.
            now: monotonic seconds.
        """
        usable: dict[str, str] = {}
        for version, (print_, since) in self._since.items():
            settled = now - since >= settle_s and version not in self.refused
            if settled or served.get(version) == print_:
                usable[version] = print_
            elif version in served:
                usable[version] = served[version]  # it is being written again; its workers keep what they loaded
        chosen = {version: usable[version] for version in policy.choose(usable)}
        if chosen == dict(served):
            self._retries.pop(_CHANGE, None)
        if not chosen or chosen in (dict(served), self._failed_change):
            return None
        # A new worker would load the files as they are now.
        if any(self._since[version][0] != print_ for version, print_ in chosen.items()):
            return None
        return chosen

    def record_failed_change(
        self,
        versions: Mapping[str, str],
        causes: Mapping[str, str],
        served: Mapping[str, str],
        temporary: Collection[str] = (),
        now: float = 0.0,
    ) -> None:
        """Records that a change could not be made.

        Args:
            versions: the versions that `wanted_change` returned.
            causes: why versions could not be loaded, by version; under "" the cause for all that were new.
            served: the versions that were served then, as given to `wanted_change`.
            temporary: the versions of these whose cause may pass by itself.
            now: monotonic seconds.
        """
        self._failed_change, self._change_retry_at = versions, inf
        for version, print_ in versions.items():
            cause = causes.get(version)
            if cause is None and "" in causes and served.get(version) != print_:
                cause = causes[""]
            if cause is not None:
                self._refuse(version, print_, cause, now if version in temporary else None)

    def record_shortage(self, versions: Mapping[str, str], cause: str, served: Mapping[str, str], now: float) -> None:
        """Records that a change could not be made because the system could not start a process at present.

        Args:
            versions: the versions that `wanted_change` returned.
            cause: what was short.
            served: the versions that were served then, as given to `wanted_change`.
            now: monotonic seconds.
        """
        self.record_failed_change(versions, {"": cause}, served, versions, now)
        # Also a change that brings no new version, as after the removal of one, is tried again.
        self._change_retry_at = self._next_try(_CHANGE, now)

    def has_settled(self, version: str, fingerprint: str, settle_s: float, now: float) -> bool:
        """Whether the files of a version have had this fingerprint for a time.

        Args:
            version: the version.
            fingerprint: of its files.
            settle_s: the time in seconds.
            now: monotonic seconds.
        """
        found, since = self._since.get(version, ("", now))
        return found == fingerprint and now - since >= settle_s

    def settle_again(self, now: float) -> None:
        """Lets all files settle anew: they were found changed while they were loaded.

        Args:
            now: monotonic seconds.
        """
        self._since = {version: (print_, now) for version, (print_, _) in self._since.items()}

    def refuse(self, version: str, fingerprint: str, cause: str, temporary_since: float | None = None) -> None:
        """Records that no worker could load a version; no-op if its files have changed since they were loaded.

        Args:
            version: the version.
            fingerprint: of its files when they were loaded.
            cause: why it could not be loaded.
            temporary_since: the time in monotonic seconds if the cause may pass by itself; else None.
        """
        if self._since.get(version, ("", 0.0))[0] == fingerprint and version not in self.refused:
            self._refuse(version, fingerprint, cause, temporary_since)

    def accept(self, version: str, fingerprint: str) -> None:
        """Records that a later try to load a version with these files has succeeded, or is in progress."""
        if version in self.refused and self.refused[version].fingerprint == fingerprint:
            del self.refused[version]

    def _refuse(self, version: str, fingerprint: str, cause: str, temporary_since: float | None) -> None:
        retry_at = None
        if temporary_since is not None:
            retry_at = self._next_try(version, temporary_since)
        self.refused[version] = Refused(fingerprint, cause, retry_at)

    def _next_try(self, subject: str, now: float) -> float:
        """Returns when a version, or the whole change, is tried again, in monotonic seconds."""
        retries = self._retries.get(subject, 0)
        self._retries[subject] = retries + 1
        return now + min(FIRST_RETRY_S * 2.0 ** min(retries, 30), MAX_RETRY_S)

    def retry_refused(self) -> None:
        """Tries refused versions again: an operator has reloaded the model."""
        self.refused.clear()
        self._failed_change = None


def versions_to_scan(
    found: Collection[str], policy: Policy, served: Collection[str], refused: Collection[str]
) -> set[str]:
    """Returns the versions in a folder whose files matter; the files of the others need not be read.

    Args:
        found: the versions in the folder.
        policy: which of the versions the model serves.
        served: versions that are served.
        refused: versions that could not be loaded.
    """
    newest = max(map(int, served), default=-1)
    # Also the version that would replace one that is removed, so that it has settled by then.
    likely = replace(policy, count=policy.count + 1).choose(version for version in found if version not in refused)
    return {
        version
        for version in found
        if version in likely or version in served or version in refused or int(version) > newest
    }
