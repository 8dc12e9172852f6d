"""Which versions of one model are to be served, as its folder changes. Pure.

`watch.py` looks at the folder again and again; what it sees and the time come in here. A new version counts once its
files have stayed as they are for a while, so that one which is still being copied is never loaded. One that could not
be loaded is passed over until its files change.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from ..config.version_folders import Policy


@dataclass(frozen=True, slots=True)
class Refused:
    """A version that could not be loaded: the fingerprint that its files had then, and why."""

    fingerprint: str
    cause: str


class VersionSettling:
    """The versions of one model.

    Attributes:
        refused: those that could not be loaded.
    """

    def __init__(self) -> None:
        self.refused: dict[str, Refused] = {}
        self._since: dict[str, tuple[str, float]] = {}  # the fingerprint that each has, and since when
        self._in_vain: Mapping[str, str] | None = None

    def see(self, seen: Mapping[str, str], now: float) -> None:
        """What a look at the folder has shown.

        Args:
            seen: by version the fingerprint of its files.
            now: monotonic seconds.
        """
        self._since = {
            version: known if (known := self._since.get(version)) and known[0] == print_ else (print_, now)
            for version, print_ in seen.items()
        }
        for version, refused in list(self.refused.items()):
            if seen.get(version, "") != refused.fingerprint:
                del self.refused[version]

    def change(self, policy: Policy, served: Mapping[str, str], settle_s: float, now: float) -> dict[str, str] | None:
        """The versions to serve instead of those that are served, with their fingerprints; None for no change.

        Args:
            policy: the model's.
            served: by version the fingerprint with which it was loaded.
            settle_s: seconds that files must have stayed as they are.
            now: monotonic seconds.
        """
        usable: dict[str, str] = {}
        for version, (print_, since) in self._since.items():
            settled = now - since >= settle_s and version not in self.refused
            if settled or served.get(version) == print_:
                usable[version] = print_
            elif version in served:
                usable[version] = served[version]  # it is being written again, and goes on as it was loaded
        chosen = {version: usable[version] for version in policy.choose(usable)}
        if not chosen or chosen in (dict(served), self._in_vain):
            return None
        # A new worker would load its files as they are now.
        if any(self._since[version][0] != print_ for version, print_ in chosen.items()):
            return None
        return chosen

    def failed(self, versions: Mapping[str, str], causes: Mapping[str, str], served: Mapping[str, str]) -> None:
        """A change was tried in vain.

        Args:
            versions: what `change` has said.
            causes: why versions could not be loaded; "" stands for all that were new.
            served: as `change` was told.
        """
        self._in_vain = versions
        for version, print_ in versions.items():
            cause = causes.get(version)
            if cause is None and "" in causes and served.get(version) != print_:
                cause = causes[""]
            if cause is not None:
                self.refused[version] = Refused(print_, cause)

    def refuse(self, version: str, fingerprint: str, cause: str) -> None:
        """No worker could load the version; of interest as long as its files are those that it was loaded from."""
        if self._since.get(version, ("", 0.0))[0] == fingerprint:
            self.refused[version] = Refused(fingerprint, cause)

    def try_again(self) -> None:
        """An operator has seen to what could not be loaded."""
        self.refused.clear()
        self._in_vain = None


def worth_looking_at(
    there: Collection[str], policy: Policy, served: Collection[str], refused: Collection[str]
) -> set[str]:
    """Of the versions that are there, those whose files matter: the others are not read at each look."""
    newest = max(map(int, served), default=-1)
    # With the one that would take the place of a version that goes, so that it has settled by then.
    likely = replace(policy, count=policy.count + 1).choose(version for version in there if version not in refused)
    return {
        version
        for version in there
        if version in likely or version in served or version in refused or int(version) > newest
    }
