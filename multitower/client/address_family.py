"""Which of IPv4 and IPv6 a client uses."""

from __future__ import annotations

from multitower.addresses import literal_version

FIRST_WAIT_S = 0.1
LONGEST_WAIT_S = 4.0


class AddressFamily:
    """The address family to connect with. ZeroMQ looks a name up in one of them.

    A name may have addresses in both, and the daemon may listen on one of them: while no connection succeeds, the two
    take turns. IPv4 is first.

    Args:
        endpoint: the daemon's.

    Attributes:
        by_name: the endpoint's host is a name, so that the family may change.
        ipv6: the family in use is IPv6.
    """

    def __init__(self, endpoint: str) -> None:
        version = literal_version(endpoint)
        self.by_name = endpoint.startswith("tcp://") and version is None
        self.ipv6 = version == 6
        self._wait_s = 0.0
        self._change_at = 0.0

    def record_failure(self, now: float) -> bool:
        """Records that an attempt to connect has failed; returns whether the other family is in use now.

        Args:
            now: monotonic seconds.
        """
        if not self.by_name or now < self._change_at:
            return False
        self._wait_s = min(max(FIRST_WAIT_S, 2 * self._wait_s), LONGEST_WAIT_S)
        self._change_at = now + self._wait_s
        self.ipv6 = not self.ipv6
        return True

    def record_success(self) -> None:
        """Records that a connection has opened: a later failure changes the family at once."""
        self._wait_s = self._change_at = 0.0
