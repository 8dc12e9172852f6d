"""The reactor with real sockets: it never waits while a message or an event is there."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
import zmq
from watching import add_socket, remove_socket

from multitower.supervisor.loop.reactor import FINE_S, Reactor

SOON_S = 60.0


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    with closing(Reactor()) as reactor:
        yield reactor


@pytest.fixture
def pair() -> Iterator[tuple[zmq.Socket[bytes], zmq.Socket[bytes]]]:
    with zmq.Context() as context, context.socket(zmq.PAIR) as ours, context.socket(zmq.PAIR) as theirs:
        ours.bind("inproc://reactor")
        theirs.connect("inproc://reactor")
        yield ours, theirs


def until(reactor: Reactor, done: Callable[[], bool]) -> None:
    """Waits again and again, as the daemon's loop does."""
    end = time.monotonic() + SOON_S
    while not done():
        assert time.monotonic() < end
        reactor.wait(SOON_S)


def reading(socket: zmq.Socket[bytes], into: list[bytes]) -> Callable[[], None]:
    def read() -> None:
        with contextlib.suppress(zmq.Again):
            while True:
                into.append(socket.recv(zmq.NOBLOCK))

    return read


def test_it_waits_for_a_descriptor_or_the_timeout(reactor: Reactor) -> None:
    out, into = os.pipe()
    called: list[int] = []
    reactor.add(out, lambda: called.append(os.read(out, 10)[0]))
    begun = time.monotonic()
    reactor.wait(0.05)
    assert time.monotonic() - begun >= 0.05
    assert not called
    os.write(into, b"\7")
    reactor.wait(SOON_S)
    assert called == [7]
    reactor.remove(out)
    os.write(into, b"\7")
    reactor.wait(0)
    assert called == [7]
    os.close(out)
    os.close(into)


def test_messages_that_arrived_before_the_socket_was_added_are_read(
    reactor: Reactor, pair: tuple[zmq.Socket[bytes], zmq.Socket[bytes]]
) -> None:
    ours, theirs = pair
    theirs.send(b"1")
    assert ours.poll(1000)  # clears what its descriptor reports
    got: list[bytes] = []
    add_socket(reactor, ours, reading(ours, got))
    until(reactor, lambda: got == [b"1"])


def test_a_message_whose_event_a_send_has_cleared_is_read(
    reactor: Reactor, pair: tuple[zmq.Socket[bytes], zmq.Socket[bytes]]
) -> None:
    ours, theirs = pair
    got: list[bytes] = []
    recheck = add_socket(reactor, ours, reading(ours, got))
    for number in range(200):
        theirs.send(b"%d" % number)
        # Longer than libzmq waits between two checks of its mailbox, so that the send checks it.
        time.sleep(0.002)
        ours.send(b"x")
        recheck()
        until(reactor, lambda number=number: len(got) == number + 1)  # type: ignore[misc]


def test_a_callback_that_leaves_messages_is_called_again(
    reactor: Reactor, pair: tuple[zmq.Socket[bytes], zmq.Socket[bytes]]
) -> None:
    ours, theirs = pair
    got: list[bytes] = []

    def read() -> None:
        with contextlib.suppress(zmq.Again):
            got.append(ours.recv(zmq.NOBLOCK))
            recheck()

    recheck = add_socket(reactor, ours, read)
    for number in range(100):
        theirs.send(b"%d" % number)
    until(reactor, lambda: len(got) == 100)


def test_a_flood_on_a_socket_does_not_starve_a_descriptor(
    reactor: Reactor, pair: tuple[zmq.Socket[bytes], zmq.Socket[bytes]]
) -> None:
    ours, theirs = pair
    recheck = add_socket(reactor, ours, lambda: recheck())
    theirs.send(b"never read: there is always more")
    out, into = os.pipe()
    called: list[bytes] = []
    reactor.add(out, lambda: called.append(os.read(out, 10)))
    os.write(into, b"signal")
    reactor.wait(SOON_S)
    assert called == [b"signal"]
    os.close(out)
    os.close(into)


def test_a_removed_socket_is_not_called(reactor: Reactor, pair: tuple[zmq.Socket[bytes], zmq.Socket[bytes]]) -> None:
    ours, theirs = pair
    got: list[bytes] = []
    recheck = add_socket(reactor, ours, reading(ours, got))
    theirs.send(b"1")
    recheck()
    remove_socket(reactor, ours)
    reactor.wait(0.05)
    assert not got


def test_short_waits_are_shorter_than_an_epolls(reactor: Reactor) -> None:
    """Those of an epoll take a millisecond at least; the scheduler may need less."""

    def waited() -> float:
        begun = time.monotonic()
        reactor.wait(0.0002)
        return time.monotonic() - begun

    times = [waited() for _ in range(50)]
    assert min(times) >= 0.0002
    assert min(times) < 0.0009


def test_a_message_ends_a_short_wait(reactor: Reactor, pair: tuple[zmq.Socket[bytes], zmq.Socket[bytes]]) -> None:
    ours, theirs = pair
    got: list[bytes] = []
    add_socket(reactor, ours, reading(ours, got))
    reactor.wait(0.0)
    theirs.send(b"1")
    deadline = time.monotonic() + SOON_S
    while not got:
        assert time.monotonic() < deadline
        reactor.wait(FINE_S / 2)
    assert got == [b"1"]


def test_run_flushes_after_each_burst_and_ends_at_its_time(
    reactor: Reactor, pair: tuple[zmq.Socket[bytes], zmq.Socket[bytes]]
) -> None:
    ours, theirs = pair
    got: list[bytes] = []
    add_socket(reactor, ours, reading(ours, got))
    flushed: list[int] = []
    theirs.send(b"1")
    until = time.monotonic() + 0.2
    assert reactor.run(until, lambda now: flushed.append(len(got)), lambda: None) >= until
    assert flushed[-1] == 1


def test_run_wakes_up_when_a_flush_is_due(reactor: Reactor) -> None:
    flushes: list[float] = []
    wake = time.monotonic() + 0.05
    until = wake + SOON_S

    def flush(now: float) -> None:
        flushes.append(now)
        if now >= wake:
            reactor.interrupt()

    # It ends with the burst after the one whose flush interrupts.
    reactor.run(until, flush, lambda: wake + 0.05 * (bool(flushes) and flushes[-1] >= wake))
    assert flushes
    assert flushes[-1] >= wake
    assert time.monotonic() < until


def test_an_interrupt_ends_run_after_the_present_burst(reactor: Reactor) -> None:
    out, into = os.pipe()
    reactor.add(out, reactor.interrupt)
    os.write(into, b"x")
    flushes: list[float] = []
    assert reactor.run(time.monotonic() + SOON_S, flushes.append, lambda: None) < time.monotonic() + SOON_S / 2
    assert not flushes
    os.close(out)
    os.close(into)


def test_an_exception_goes_to_its_handler_and_the_others_are_called(
    reactor: Reactor, pair: tuple[zmq.Socket[bytes], zmq.Socket[bytes]]
) -> None:
    ours, theirs = pair
    errors: list[Exception] = []
    called: list[bytes] = []

    def fail() -> None:
        called.append(ours.recv())
        raise KeyError("a defect")

    add_socket(reactor, ours, fail, errors.append)
    out, into = os.pipe()
    broken, into_broken = os.pipe()
    reactor.add(out, lambda: called.append(os.read(out, 10)))
    reactor.add(broken, lambda: 1 // os.read(broken, 1)[0], errors.append)
    os.write(into_broken, b"\0")
    theirs.send(b"message")
    os.write(into, b"bytes")
    until(reactor, lambda: len(called) == 2 and len(errors) == 2)
    assert {type(error) for error in errors} == {KeyError, ZeroDivisionError}
    assert set(called) == {b"message", b"bytes"}
    for descriptor in (out, into, broken, into_broken):
        os.close(descriptor)


def test_an_exception_without_a_handler_loses_no_message_of_another_socket(reactor: Reactor) -> None:
    with contextlib.ExitStack() as stack:
        context = stack.enter_context(zmq.Context())
        got: list[bytes] = []

        def fail(broken: zmq.Socket[bytes]) -> None:
            got.append(broken.recv())
            raise KeyError("a defect")

        for name in ("a", "b", "c"):
            ours, theirs = (stack.enter_context(context.socket(zmq.PAIR)) for _ in range(2))
            ours.bind(f"inproc://{name}")
            theirs.connect(f"inproc://{name}")
            theirs.send(name.encode())
            assert ours.poll(1000)  # its descriptor reports nothing any more: only a recheck finds the message
            add_socket(reactor, ours, functools.partial(fail, ours))
        for _ in range(3):
            with pytest.raises(KeyError):
                reactor.wait(SOON_S)
        assert sorted(got) == [b"a", b"b", b"c"]


def test_a_callback_may_remove_a_socket_that_waits_for_a_recheck(reactor: Reactor) -> None:
    with contextlib.ExitStack() as stack:
        context = stack.enter_context(zmq.Context())
        ours = []
        for name in ("a", "b"):
            ours.append(stack.enter_context(context.socket(zmq.PAIR)))
            theirs = stack.enter_context(context.socket(zmq.PAIR))
            ours[-1].bind(f"inproc://{name}")
            theirs.connect(f"inproc://{name}")
            theirs.send(b"1")
        add_socket(reactor, ours[0], lambda: remove_socket(reactor, ours[1]))
        add_socket(reactor, ours[1], lambda: pytest.fail("it was removed"))
        reactor.wait(SOON_S)


def test_a_socket_that_cannot_be_checked_is_reported_to_its_handler(reactor: Reactor) -> None:
    errors: list[Exception] = []
    with zmq.Context() as context, context.socket(zmq.PAIR) as ours:
        add_socket(reactor, ours, lambda: None, errors.append)
    reactor.wait(0)
    assert [error.errno for error in errors if isinstance(error, zmq.ZMQError)] == [zmq.ENOTSOCK]


def test_a_descriptor_is_watched_for_writing_only_while_that_is_wanted(reactor: Reactor) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        called: list[bool] = []
        reactor.add(ours.fileno(), lambda: called.append(True))
        reactor.wait(0)
        assert not called
        reactor.watch_writable(ours.fileno(), True)
        reactor.wait(0)
        assert len(called) == 1
        theirs.send(b"also readable")
        reactor.watch_writable(ours.fileno(), False)
        reactor.wait(0)
        assert len(called) == 2
        ours.recv(100)
        reactor.wait(0)
        assert len(called) == 2
        reactor.remove(ours.fileno())


def test_a_reactor_that_spins_finds_what_arrives_meanwhile_and_sleeps_afterwards() -> None:
    out, into = os.pipe()
    called: list[bytes] = []
    with closing(Reactor(spin_s=0.1)) as spinning:
        spinning.add(out, lambda: called.append(os.read(out, 10)))
        begun, cpu = time.monotonic(), time.thread_time()
        spinning.wait(0.5)
        assert time.monotonic() - begun >= 0.49
        assert time.thread_time() - cpu < 0.4  # it sleeps for the rest
        os.write(into, b"1")
        begun = time.monotonic()
        spinning.wait(SOON_S)
        assert called == [b"1"]
        assert time.monotonic() - begun < SOON_S
    os.close(out)
    os.close(into)
