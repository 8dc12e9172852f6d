"""One connection to a daemon: a DEALER socket and a thread that serves it. The clients are thin fronts of it.

The thread connects, asks the daemon for its limits, sends, receives, sends again what was refused unrun, expires, and
fails what is outstanding when the connection is lost; each call gets exactly one outcome.

A call that is made while the thread sleeps is sent by its caller, which saves waking the thread. While it does not,
calls are handed over through a deque, and one round sends all that have come. Whoever uses the socket, and what is
known of its calls, holds the lock `_using`: the thread at all times but when it sleeps. It sleeps outside libzmq, on
the socket's descriptor, which tells only once that something has come, and which sending may silence: so a caller that
has sent looks, and wakes the thread through a pipe. Who waits for the only answer that is to come reads it by itself
(`lead.py`).
"""

from __future__ import annotations

import atexit
import contextlib
import os
import select
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import zmq
from zmq.utils.monitor import recv_monitor_message

from multitower import frames, wire
from multitower.client.codec import error_of, read_header
from multitower.client.lead import Gate, gate_to
from multitower.client.retries import Retries, told_after
from multitower.errors import MultitowerError, Reason, make

CLOSE_S = 5.0
RECONNECT_MS = 100
RECONNECT_MAX_MS = 2000
LONGEST_SLEEP_MS = 3_600_000
_GREETING = b"greeting"
_EVENTS = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED


class Call:
    """A request and where its outcome goes.

    Attributes:
        kind: of the request.
        header: its header.
        body: its tensors.
        deadline: monotonic seconds.
        connect_by: when it fails if it could not be sent until then, monotonic seconds.
        done: takes the header and output frames of an `MT1:ok` reply, or the error; called once, in the
            connection's thread.
        id: unique in its connection; set each time that it is sent.
        again: where it uses shared memory, makes the header and tensors of the same request without; else None.
        over: it has its outcome, or nobody waits for it.
        retries: how often it was refused and is sent again.
    """

    __slots__ = ("again", "body", "connect_by", "deadline", "done", "header", "id", "kind", "over", "retries")

    def __init__(
        self,
        kind: bytes,
        header: bytes,
        body: Sequence[Any],
        deadline: float,
        connect_by: float,
        done: Callable[[list[Any] | MultitowerError], None],
        again: Callable[[], tuple[bytes, Sequence[Any]]] | None = None,
    ) -> None:
        self.again = again
        self.kind = kind
        self.header = header
        self.body = body
        self.deadline = deadline
        self.connect_by = connect_by
        self.done = done
        self.id = b""
        self.over = False
        self.retries = 0


def _size(call: Call) -> int:
    return len(call.header) + sum(map(len, call.body))


def _nobody(_: list[Any] | MultitowerError) -> None:
    """Takes the place of `Call.done` afterwards: a future and its call must not keep each other alive."""


def _no_shared_memory(error: MultitowerError) -> bool:
    """The daemon refused a request since it cannot reach its shared memory."""
    return error.reason == Reason.MALFORMED and str(error.details.get("field")).endswith(wire.SHARED_MEMORY_REGION)


class Connection:
    """A connection that opens by itself, and again after it was lost.

    Args:
        endpoint: the daemon's.
        retries: how often a call that the daemon refused without running it is sent again.

    Attributes:
        endpoint: the same.
    """

    def __init__(self, endpoint: str, retries: int = 0) -> None:
        self.endpoint = endpoint
        self._shares_from = float("inf")  # when tensors may go through shared memory, monotonic seconds
        self._pid = os.getpid()
        self._new: deque[Call] = deque()
        self._cancelled: deque[Call] = deque()
        self._unsent: deque[Call] = deque()
        self._outstanding: dict[bytes, Call] = {}
        self._retries = Retries(retries)
        self._next_check = float("inf")
        self._serial = 0
        self._limit = wire.DEFAULT_MAX_MESSAGE_SIZE
        self._connected = False  # the handshake is done, and the greeting sent
        self._greeted = False  # and the daemon has answered it: calls may be sent
        self._blocked = False  # libzmq takes no more for now
        self._closing = False
        self._sleeping = True
        self._ended = False  # the thread takes nothing any more
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        options = {
            zmq.LINGER: 0,
            zmq.IMMEDIATE: 1,  # nothing is queued for a daemon that is not there
            # The requests outstanding bound the replies. A limit here would stop reading while an application's
            # callback runs, and the daemon drops what a client does not read.
            zmq.RCVHWM: 0,
            zmq.RECONNECT_IVL: RECONNECT_MS,
            zmq.RECONNECT_IVL_MAX: RECONNECT_MAX_MS,
            zmq.IPV6: int("[" in endpoint),
        }
        try:
            for option, value in options.items():
                self._socket.set(option, value)
            self._monitor = self._socket.get_monitor_socket(_EVENTS)
            self._socket.connect(endpoint)
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)  # with the monitor's sockets
            message = f"{endpoint!r} is no endpoint ({zmq.strerror(error.errno or 0)}): ipc://PATH or tcp://HOST:PORT"
            raise make(Reason.NOT_LISTENING, message) from None
        self._wake_out, self._wake_in = os.pipe()
        os.set_blocking(self._wake_out, False)
        os.set_blocking(self._wake_in, False)
        self._using = threading.Lock()
        self._gate = gate_to(self._socket.fileno())
        self._leading: Call | None = None  # whose caller reads its answer by itself
        self._unread: deque[list[Any]] = deque()  # what that caller has read for others
        self._told = select.poll()
        self._told.register(self._socket.fileno(), select.POLLIN)
        # So that nobody writes into a descriptor that was closed and may be another file's by now. Reentrant: the
        # garbage collector may run a client's finalizer, which wakes, in a thread that is waking.
        self._waking = threading.RLock()
        self._thread = threading.Thread(target=self._run, name="multitower-client", daemon=True)
        self._thread.start()
        _open.add(self)

    # From any thread.

    @property
    def shared_memory(self) -> bool:
        """The daemon takes tensors through shared memory now, as far as is known."""
        since = self._shares_from
        return since == 0.0 or since <= time.monotonic()

    @property
    def in_its_thread(self) -> bool:
        """The caller runs in the connection's own thread: in a callback."""
        return threading.current_thread() is self._thread

    def check(self) -> None:
        """Refuses use after `close`, and in a forked child.

        Raises:
            Unavailable: `closed`.
        """
        if self._pid != os.getpid():
            message = "this client was made before a fork: make a new one in the child process"
            raise make(Reason.CLOSED, message)
        if self._closing:
            raise make(Reason.CLOSED, "this client has been closed")

    def start(self, call: Call) -> None:
        """Sends a call as soon as that is possible. Its outcome comes through `call.done`."""
        if self._send_at_once(call):
            return
        self._new.append(call)
        self._wake()
        if self._ended:
            self._refuse_new()

    def _send_at_once(self, call: Call) -> bool:
        """Sends a call while the connection's thread sleeps; False when it is to be handed over."""
        # A loop of one step, since Ctrl-C can come between a call and what follows it, but not here: a lock that is
        # taken is given back.
        for taken in map(self._using.acquire, (False,)):
            try:
                return taken and self._send_or_not(call)
            except BaseException:
                self._wake()  # the thread may have to look at its times again
                raise
            finally:
                if taken:
                    self._using.release()
        return False

    def _send_or_not(self, call: Call) -> bool:
        if not self._greeted or self._closing or self._new or self._unsent or self._too_large(call):
            return False
        if self._told.poll(0):
            return False  # something has come: the thread wakes anyway, and is to read that first
        try:
            self._send_one(call)
        except zmq.Again:
            return False
        # The thread sleeps until what was the first deadline.
        wake = call.deadline < self._next_check or frames.readable(self._socket)
        self._next_check = min(self._next_check, call.deadline)
        if wake:
            self._wake()
        return True

    def lead(self, call: Call) -> None:
        """Waits for a call's outcome where its answer is the only one to come; else returns at once.

        Nobody but the caller may know of the call: what follows from its outcome happens in the caller's thread.
        """
        gate = self._gate
        if gate is None or len(self._outstanding) != 1:
            return
        leads = True
        try:
            with self._using:
                if self._leading is not None or len(self._outstanding) != 1 or call.id not in self._outstanding:
                    leads = False
                    return
                self._leading = call  # first: from here on it is undone, whatever happens
                gate.shut_it()
            while leads:
                gate.wait()
                with self._using:
                    if not self._ended:
                        self._read_own(call)
                    if call.over:
                        self._follow(gate)
                        leads = False
                    elif self._unread:
                        self._wake()
        finally:
            if leads:  # Ctrl-C, say, at any moment
                with self._using:
                    if self._leading is call:
                        self._follow(gate)

    def _read_own(self, call: Call) -> None:
        """Settles the call by its answer; whatever else has come is for the connection's thread."""
        while (message := frames.receive(self._socket)) is not None:
            if (
                len(message) > 3
                and (message[0], message[1], message[2]) == (wire.DELIMITER, wire.OK, call.id)
                and self._outstanding.pop(call.id, None) is not None
            ):
                self._settle(call, [bytes(message[3]), *message[4:]])
            else:
                self._unread.append(message)

    def _follow(self, gate: Gate) -> None:
        """The caller leads no more: the thread sleeps on the socket again."""
        if self._ended:
            self._leading = None
            gate.close()
            return
        gate.open_it()
        self._leading = None
        if self._unread or frames.readable(self._socket):
            self._wake()

    def cancel(self, call: Call) -> None:
        """Nobody waits for this call any more: it is not sent, or the daemon is told."""
        if self._pid == os.getpid():
            self._cancelled.append(call)
            self._wake()

    def stop(self) -> None:
        """Ends the connection soon; returns at once. Calls without an outcome fail as `closed`."""
        if self._pid == os.getpid():
            self._closing = True
            self._wake(always=True)

    def join(self, timeout: float = CLOSE_S) -> None:
        """Waits until the connection has ended."""
        if self._pid == os.getpid() and not self.in_its_thread:
            self._thread.join(timeout)

    def _wake(self, *, always: bool = False) -> None:
        if self._sleeping or always:
            with self._waking:
                if not self._ended:
                    with contextlib.suppress(BlockingIOError):  # a full pipe wakes as well
                        os.write(self._wake_in, b"\0")

    # In the connection's thread.

    def _run(self) -> None:
        poll = select.poll()
        monitor = self._monitor.fileno()
        for descriptor in (self._gate or self._socket, monitor, self._wake_out):
            poll.register(descriptor, select.POLLIN)
        self._using.acquire()
        try:
            self._watch()  # from now on its descriptor tells of whatever comes
            while not self._closing:
                ready = self._sleep(poll)
                if self._wake_out in ready:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._wake_out, 4096)
                self._receive()
                if monitor in ready:
                    self._watch()
                now = time.monotonic()
                if now >= self._retries.due:
                    self._new.extend(self._retries.take(now))
                self._take_new()
                self._take_cancelled()
                self._send()
                if now >= self._next_check:
                    self._expire(now)
        finally:
            self._closing = True
            self._end()
            self._using.release()

    def _sleep(self, poll: select.poll) -> list[int]:
        """Waits until something has come or is due; returns the descriptors that tell of it."""
        self._sleeping = True
        # What was handed over before it slept must not wait for a wake-up that nobody sends.
        if self._new or self._cancelled or self._closing or self._unread or self._can_go_on():
            timeout: int | None = 0
        else:
            timeout = self._timeout_ms()
        self._using.release()
        ready = poll.poll(timeout)
        self._using.acquire()
        self._sleeping = False
        return [descriptor for descriptor, _ in ready]

    def _can_go_on(self) -> bool:
        """Something has come, or what libzmq did not take could be sent now: the descriptor may have told it before."""
        events = self._socket.get(zmq.EVENTS)
        wanted = zmq.POLLIN | zmq.POLLOUT if self._blocked else zmq.POLLIN
        return isinstance(events, int) and bool(events & wanted)

    def _timeout_ms(self) -> int | None:
        until = min(self._next_check, self._retries.due)
        if until == float("inf"):
            return None
        return min(max(0, int((until - time.monotonic()) * 1000) + 1), LONGEST_SLEEP_MS)

    def _take_new(self) -> None:
        while self._new:
            call = self._new.popleft()
            self._unsent.append(call)
            self._next_check = min(self._next_check, call.deadline)
            if not self._greeted:
                self._next_check = min(self._next_check, call.connect_by)

    def _take_cancelled(self) -> None:
        while self._cancelled:
            call = self._cancelled.popleft()
            if call.over:
                continue
            # Those who wait for several futures at once hear of a cancelled one only through this.
            self._settle(call, make(Reason.CANCELLED, "the request was cancelled"))
            call.body = ()  # where it waits to be sent, it stays until its turn comes
            if self._outstanding.pop(call.id, None) is not None:
                self._give_up(call)

    def _give_up(self, call: Call) -> None:
        """Tells the daemon that nobody waits for what was sent."""
        with contextlib.suppress(zmq.Again):  # no room: its answer is dropped when it comes
            frames.send(self._socket, (wire.DELIMITER, wire.CANCEL, call.id, b"{}"))

    def _send(self) -> None:
        self._blocked = False
        while self._unsent and self._greeted:
            call = self._unsent[0]
            if call.over:
                self._unsent.popleft()
                continue
            if self._too_large(call):
                self._unsent.popleft()
                message = f"the message has {_size(call)} bytes; the daemon's max_message_size is {self._limit}"
                self._settle(call, make(Reason.TOO_LARGE, message, field="frames"))
                continue
            try:
                self._send_one(call)
            except zmq.Again:
                self._blocked = True
                return
            self._unsent.popleft()

    def _too_large(self, call: Call) -> bool:
        return _size(call) > self._limit

    def _send_one(self, call: Call) -> None:
        """Sends a call.

        Raises:
            zmq.Again: libzmq takes no more for now.
        """
        self._serial += 1
        call.id = self._serial.to_bytes(8, "little")
        try:
            frames.send(self._socket, (wire.DELIMITER, call.kind, call.id, call.header, *call.body))
        except zmq.ZMQError:
            raise  # nothing of it was sent
        except BaseException:
            # Ctrl-C, say, between two frames: what was sent of it must not become the beginning of the next message.
            # The daemon refuses what this makes of it, and the refusal is nobody's.
            frames.send(self._socket, (b"",))
            raise
        self._outstanding[call.id] = call

    def _receive(self) -> None:
        # To ask first whether something has come would cost less. But asked, libzmq learns that the connection is lost,
        # and with that forgets answers that came before.
        while (message := self._unread.popleft() if self._unread else frames.receive(self._socket)) is not None:
            # Anything that is no reply of the protocol's is not for us.
            if len(message) < 4 or message[0] != wire.DELIMITER:
                continue
            kind, id, header = message[1], message[2], bytes(message[3])
            if id == _GREETING:
                self._greet(kind, header)
                continue
            call = self._outstanding.pop(id, None)
            if call is None:
                continue  # cancelled or expired meanwhile
            if kind == wire.OK:
                self._settle(call, [header, *message[4:]])
                continue
            error = error_of(header)
            if call.again is not None and _no_shared_memory(error):
                # It has not run. The next ones are not even tried, for good or until a shortage may have passed.
                after = told_after(error)
                again_from = float("inf") if after is None else time.monotonic() + after
                self._shares_from = max(self._shares_from, again_from)
                self._send_in_frames(call, error)
            elif not self._retries.add(call, error, time.monotonic()):
                self._settle(call, error)

    def _send_in_frames(self, call: Call, refusal: MultitowerError) -> None:
        assert call.again is not None  # it was in shared memory
        try:
            (call.header, call.body), call.again = call.again(), None
        except Exception as error:  # noqa: BLE001  no memory for a copy: its outcome, and nobody else's
            message = f"{refusal.message}; and it cannot be sent in frames: {error!r}"
            self._settle(call, make(Reason.MALFORMED, message, field=refusal.details.get("field")))
        else:
            self._unsent.append(call)

    def _watch(self) -> None:
        while True:
            try:
                event = recv_monitor_message(self._monitor, zmq.NOBLOCK)["event"]
            except zmq.Again:
                return
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._connected = True
                with contextlib.suppress(zmq.Again):  # gone again already; the next connection greets anew
                    frames.send(self._socket, (wire.DELIMITER, wire.SERVER_METADATA, _GREETING, b"{}"))
            elif event == zmq.EVENT_DISCONNECTED:
                # Answers that came before the end count.
                self._receive()
                self._connected = self._greeted = False
                self._shares_from = float("inf")
                lost, self._outstanding = self._outstanding, {}
                for call in lost.values():
                    message = f"the connection to {self.endpoint} was lost before the answer came"
                    self._settle(call, make(Reason.CONNECTION_LOST, message))
                # What waits to be sent has this long to find the daemon again.
                self._next_check = min((call.connect_by for call in self._unsent), default=self._next_check)

    def _greet(self, kind: bytes, header: bytes) -> None:
        self._greeted = True
        self._limit = wire.DEFAULT_MAX_MESSAGE_SIZE
        with contextlib.suppress(MultitowerError):  # a daemon that does not tell
            told = read_header(header) if kind == wire.OK else {}
            limit = told.get("max_message_size")
            if type(limit) is int and limit > 0:
                self._limit = limit
            extensions = told.get("extensions")
            if (
                self.endpoint.startswith("ipc:")
                and isinstance(extensions, list)
                and wire.SHARED_MEMORY_EXTENSION in extensions
            ):
                self._shares_from = 0.0

    def _expire(self, now: float) -> None:
        """Fails what has run out of time. Runs when the earliest deadline known has come: rarely, under load."""
        for call in [call for call in self._outstanding.values() if call.deadline <= now]:
            del self._outstanding[call.id]
            self._settle(call, make(Reason.DEADLINE, "no answer within the request's time"))
            # The daemon's clock started when the request reached it, which may have been late.
            self._give_up(call)
        for call in list(self._unsent):
            if call.deadline <= now or (not self._greeted and call.connect_by <= now):
                self._unsent.remove(call)
                self._settle(call, self._not_sent(call, now))
        times = [call.deadline for call in self._outstanding.values()]
        times += [call.deadline if self._greeted else min(call.deadline, call.connect_by) for call in self._unsent]
        self._next_check = min(times, default=float("inf"))

    def _not_sent(self, call: Call, now: float) -> MultitowerError:
        if self._greeted:
            return make(Reason.DEADLINE, "the request's time was over before it could be sent")
        if self._connected:
            message = f"something listens at {self.endpoint}, but it does not answer as a multitower daemon"
        else:
            message = (
                f"no daemon listens at {self.endpoint}; is it running (multitower serve CONFIG), and is this its "
                f"endpoint ({wire.ENDPOINT_VARIABLE} or the client's argument)?"
            )
        return make(Reason.NOT_LISTENING, message)

    def _settle(self, call: Call, outcome: list[Any] | MultitowerError) -> None:
        if not call.over:
            call.over = True
            done, call.done, call.again = call.done, _nobody, None
            done(outcome)
            if call is self._leading and self._gate is not None and self.in_its_thread:
                self._gate.ring()  # who reads its own answer need not be told

    def _end(self) -> None:
        self._take_new()
        for call in (*self._unsent, *self._outstanding.values(), *self._retries.take(float("inf"))):
            self._settle(call, make(Reason.CLOSED, "this client has been closed"))
        self._unsent.clear()
        self._outstanding.clear()
        self._socket.disable_monitor()
        self._monitor.close()
        self._socket.close()
        self._context.term()
        with self._waking:
            self._ended = True
            os.close(self._wake_in)
            os.close(self._wake_out)
        if self._gate is not None and self._leading is None:
            self._gate.close()  # else who leads does so: it has still to hear the bell
        self._refuse_new()

    def _refuse_new(self) -> None:
        """Fails what was handed over while the thread ended; also in the thread that handed it over."""
        while True:
            try:
                call = self._new.popleft()
            except IndexError:
                return
            self._settle(call, make(Reason.CLOSED, "this client has been closed"))


_open: weakref.WeakSet[Connection] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """At the interpreter's end, sockets must not be torn down under a running thread."""
    for connection in list(_open):
        connection.stop()
        connection.join(1.0)
