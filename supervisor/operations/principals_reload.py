"""Puts the principals of a changed file in force at once, where the reload has to wait for other orders.

An order may take as long as a model loads. A principal that was removed from the file must not have access so long.
"""

from __future__ import annotations

import itertools
import logging
from typing import Any

from ..config.config import Config
from ..config.principals import Principals
from ..loop.background import BackgroundJobs
from ..loop.log import event
from ..security.access_control import AccessControl
from ..settings import ActiveSettings
from .order_queue import ReadConfig
from .reload import unchangeable_keys

log = logging.getLogger("multitower.daemon")


class PrincipalsReload:
    """Reads principals, and puts those in force that were read last.

    Args:
        access: the daemon's; None without `security`.
        settings: the settings in force.
        background: runs what would block the event loop.
        read_config: reads the configuration file, and the principals with it.
    """

    def __init__(
        self,
        access: AccessControl | None,
        settings: ActiveSettings,
        background: BackgroundJobs,
        read_config: ReadConfig,
    ) -> None:
        self._access = access
        self._settings = settings
        self._background = background
        self._read_config = read_config
        self._numbers = itertools.count(1)
        self._in_force = self._reported = settings.current.config.principals
        self._applied = 0
        self._reading = False
        self._again = False

    def began_to_read(self) -> int:
        """Returns a number for what is read from now on; see `apply`."""
        return next(self._numbers)

    def apply(self, principals: Principals | None, number: int) -> None:
        """Puts principals in force, unless others are that were read later.

        Args:
            principals: as read; None without `security`.
            number: what `began_to_read` returned before.
        """
        if self._access is not None and principals is not None and number > self._applied:
            self._applied = number
            before, self._in_force = self._in_force, principals
            self._access.apply(principals)
            changes = differences(before, principals)
            fields = {change: ",".join(names) or None for change, names in changes.items()}
            if any(fields.values()):
                event(log, logging.INFO, "principals changed", number=len(principals.by_name), **fields)

    def take_changes(self) -> dict[str, Any] | None:
        """Returns who was `added`, `removed` and `changed` since the last call, and the `number` in force.

        None without `security`.
        """
        if self._in_force is None:
            return None
        changes = differences(self._reported, self._in_force)
        self._reported = self._in_force
        return {"number": len(self._in_force.by_name), **changes}

    def start(self) -> None:
        """Reads the configuration; if it is right, its principals are in force when it has been read.

        What is wrong with it is left to the reload, which reads it again when its turn has come.
        """
        if self._access is None:
            return
        if self._reading:
            self._again = True  # the file may have changed after it was read
            return
        self._reading = True
        number = self.began_to_read()
        self._background.run(lambda: self._read_config(None), lambda outcome: self._read(outcome, number))

    def _read(self, outcome: Config | Exception, number: int) -> None:
        self._reading = False
        if isinstance(outcome, Config) and not unchangeable_keys(self._settings.current.config, outcome):
            self.apply(outcome.principals, number)
            event(log, logging.INFO, "principals applied before the reload, which waits for another order")
        again, self._again = self._again, False
        if again:
            self.start()


def differences(old: Principals | None, new: Principals) -> dict[str, list[str]]:
    """Returns the names of the principals that were `added`, `removed` and `changed`, in the order of the files."""
    former = old.by_name if old is not None else {}
    return {
        "added": [name for name in new.by_name if name not in former],
        "removed": [name for name in former if name not in new.by_name],
        "changed": [name for name, each in new.by_name.items() if name in former and former[name] != each],
    }
