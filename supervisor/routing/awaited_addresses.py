"""Addresses that cannot be bound yet, since a name, a folder or an interface is not there: they are tried again."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Mapping
from math import inf
from typing import Final

from ..loop.background import BackgroundJobs
from ..loop.log import event
from ..loop.runtime_dir import HeldError
from .name_resolution import find_addresses

log = logging.getLogger("multitower.daemon")

FIRST_RETRY_S: Final = 0.5
"""Seconds until an address that could not be bound is tried again; doubled each time."""

MAX_RETRY_S: Final = 10.0
"""Seconds from one try to the next at most."""


class AwaitedAddresses:
    """The addresses that are waited for, and why.

    Args:
        background: resolves names; None if nothing is ever added.
        message: the log's line about an address that is waited for.
        field: the name of the address in this line.
        endpoint_of: returns an address in the form of `listen`.

    Attributes:
        causes: why they could not be bound, by address.
        retry_at: when `retry` must be called, in monotonic seconds.
    """

    def __init__(
        self,
        background: BackgroundJobs | None,
        message: str,
        field: str,
        endpoint_of: Callable[[str], str] = str,
    ) -> None:
        self.causes: dict[str, str] = {}
        self.retry_at = inf
        self._background = background
        self._message = message
        self._field = field
        self._endpoint_of = endpoint_of
        self._retry_s = FIRST_RETRY_S

    def add(self, address: str, cause: str) -> None:
        """Waits for an address that could not be bound at the start, for this cause."""
        self._set_cause(address, cause)
        self.retry_at = -inf

    def _set_cause(self, address: str, cause: str) -> None:
        if self.causes.get(address) != cause:
            event(log, logging.WARNING, self._message, **{self._field: address}, cause=cause)
        self.causes[address] = cause

    def retry(self, now: float, bind: Callable[[str, str], None]) -> None:
        """Tries to bind the addresses, if it is time to. Names are resolved in a thread.

        Args:
            now: monotonic seconds.
            bind: gets an address, and its endpoint with the name resolved, and binds it. What it raises is why the
                address is still waited for. An exception other than `HeldError` and `OSError` is raised again.
        """
        if now < self.retry_at or self._background is None:
            return
        self.retry_at = inf  # until the thread has ended
        endpoints = [self._endpoint_of(address) for address in self.causes]
        self._background.run(functools.partial(find_addresses, endpoints), functools.partial(self._bind_all, bind))

    def _bind_all(self, bind: Callable[[str, str], None], found: Mapping[str, str | OSError] | Exception) -> None:
        try:
            for address in tuple(self.causes):
                endpoint = found if isinstance(found, Exception) else found[self._endpoint_of(address)]
                self._bind(address, endpoint, bind)
        finally:
            self.retry_at = time.monotonic() + self._retry_s if self.causes else inf
            self._retry_s = min(2 * self._retry_s, MAX_RETRY_S)

    def _bind(self, address: str, endpoint: str | Exception, bind: Callable[[str, str], None]) -> None:
        if isinstance(endpoint, Exception):
            self._set_cause(address, f"cannot listen on {address}: {endpoint}")
            return
        try:
            bind(address, endpoint)
        except Exception as error:
            self._set_cause(address, str(error))
            if not isinstance(error, (HeldError, OSError)):
                raise
        else:
            del self.causes[address]
