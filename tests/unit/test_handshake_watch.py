"""Which connections are ended because they have not shaken hands, and when."""

from __future__ import annotations

import contextlib

import pytest

from multitower.supervisor.routing.connections import Connections
from multitower.supervisor.routing.handshake_watch import HandshakeWatch

NAMES = "abc"  # connected at 0.0, 0.5 and 1.0 s


@pytest.mark.parametrize(
    ("now", "crowded", "shaken", "late"),
    [
        (0.9, True, "", ""),
        (1.0, True, "", "a"),
        (1.6, True, "", "ab"),
        (9.0, True, "", "abc"),
        (9.0, True, "b", "ac"),
        (4.9, False, "", ""),
        (5.0, False, "", "a"),
        (9.0, False, "", "abc"),
        (9.0, False, "abc", ""),
    ],
)
def test_a_handshake_may_take_a_second_where_others_wait_and_else_longer(
    now: float, crowded: bool, shaken: str, late: str
) -> None:
    watch: HandshakeWatch[str] = HandshakeWatch(5.0, shaken.__contains__)
    for number, name in enumerate(NAMES):
        watch.add(name, number / 2)
    assert "".join(name for name, _ in watch.take_late(now, crowded)) == late
    assert not list(watch.take_late(now, crowded)), "each once"


def test_a_connection_that_is_forgotten_is_not_late() -> None:
    watch: HandshakeWatch[str] = HandshakeWatch(5.0, lambda _: False)
    watch.add("a", 0.0)
    watch.add("b", 0.0)
    watch.forget("a")
    assert list(watch.take_late(9.0, False)) == [("b", 5.0)]


@pytest.mark.parametrize(("taken", "maximum", "crowded"), [(0, 10, False), (8, 10, False), (9, 10, True), (3, 3, True)])
def test_places_are_nearly_full_from_nine_tenths_on(taken: int, maximum: int, crowded: bool) -> None:
    with contextlib.closing(Connections(maximum)) as connections:
        connections._sockets = dict.fromkeys(range(1000, 1000 + taken), 1)
        assert connections.crowded is crowded


def test_where_descriptors_run_out_handshakes_must_be_fast() -> None:
    with contextlib.closing(Connections(10)) as connections:
        assert not connections.crowded
        connections.pause()
        connections.accept()
        assert connections.paused
        assert connections.crowded
