"""Connections that go on asking although nobody knows their sender are closed, and no other ones."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from multitower.supervisor.routing.strangers import CLOSED_AFTER, MAX_STRANGERS, READ_AHEAD, Strangers

NAME = b"\0\1\2\3\4"

Ends = tuple[socket.socket, socket.socket]


@pytest.fixture
def ends() -> Iterator[Ends]:
    """The daemon's end of a connection, and the client's, which does not block."""
    near, far = socket.socketpair()
    far.setblocking(False)
    with near, far:
        yield near, far


def is_open(far: socket.socket) -> bool:
    try:
        return far.recv(1) != b""
    except BlockingIOError:
        return True


def test_a_connection_is_closed_after_so_many_messages(ends: Ends) -> None:
    near, far = ends
    strangers = Strangers()
    for _ in range(CLOSED_AFTER):
        strangers.note(NAME, near.fileno())
        assert is_open(far)
    strangers.note(NAME, near.fileno())
    assert not is_open(far)


def test_messages_that_were_read_ahead_of_a_closed_connection_do_no_harm(ends: Ends) -> None:
    near, _ = ends
    strangers = Strangers()
    number = os.dup(near.fileno())
    strangers.note(NAME, number)
    os.close(number)
    for _ in range(2 * CLOSED_AFTER):
        strangers.note(NAME, number)
    strangers.note(NAME, -1)  # libzmq knows no descriptor


@pytest.mark.parametrize("asked_before", [0, 1, READ_AHEAD, CLOSED_AFTER], ids=lambda count: f"{count} before")
def test_another_connection_that_got_the_number_stays_open(ends: Ends, asked_before: int) -> None:
    near, far = ends
    number = near.fileno()
    strangers = Strangers()
    for _ in range(asked_before):
        strangers.note(NAME, number)
    other, its_client = socket.socketpair()
    its_client.setblocking(False)
    with other, its_client:
        os.dup2(other.fileno(), number)  # the connection has been closed, and the next one has its number
        assert not is_open(far)
        for _ in range(READ_AHEAD):
            strangers.note(NAME, number)
        assert is_open(its_client)


def test_a_name_that_comes_by_another_descriptor_is_counted_anew(ends: Ends) -> None:
    near, far = ends
    strangers = Strangers()
    for _ in range(CLOSED_AFTER):
        strangers.note(NAME, near.fileno())
    again = os.dup(near.fileno())
    try:
        for _ in range(CLOSED_AFTER):
            strangers.note(NAME, again)
            assert is_open(far)
        strangers.note(NAME, again)
        assert not is_open(far)
    finally:
        os.close(again)


def test_each_connection_is_counted_for_itself_and_their_number_is_bounded(ends: Ends) -> None:
    near, far = ends
    strangers = Strangers()
    for number in range(2 * MAX_STRANGERS):
        strangers.note(number.to_bytes(4, "big"), near.fileno())
    assert is_open(far)
    assert len(strangers._by_name) == MAX_STRANGERS
