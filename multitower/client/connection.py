"""One connection to a daemon: a socket and the thread that serves it. Both clients use it.

The thread connects, asks the daemon for its limits, sends, receives, retries what the daemon refused without running
it, expires calls, and fails what is outstanding when the connection is lost. Each call gets exactly one outcome.

A call that is made while the thread sleeps is sent by its caller (`direct.py`). Other calls are handed over through a
deque, and one round of the thread sends all of them. The thread sleeps outside libzmq, on the socket's descriptor. That
descriptor reports changes only, and sending may consume one: so a caller that has sent checks the socket, and wakes the
thread through a pipe.
"""

from __future__ import annotations

import atexit
import os
import select
import threading
import time
import weakref
from collections import deque

import zmq

from multitower import liveness, wire
from multitower.client.codec import error_of, read_header
from multitower.client.connect_errors import no_socket
from multitower.client.credentials import Credentials
from multitower.client.dealer_socket import HANDSHAKE_FAILED
from multitower.client.direct import DirectPath
from multitower.client.patched import check_primitives
from multitower.client.retries import Retries, retry_after
from multitower.client.transport import Call, Outcome, Transport
from multitower.errors import MultitowerError, Reason, make

CLOSE_S = 5.0
MAX_SLEEP_MS = 3_600_000
_GREETING_ID = b"greeting"
_NEVER = float("inf")


def _refuses_shared_memory(error: MultitowerError) -> bool:
    """Whether the daemon refused a request because it cannot reach the client's shared memory."""
    return error.reason == Reason.MALFORMED and str(error.details.get("field")).endswith(wire.SHARED_MEMORY_REGION)


def _timeout_error(what: str) -> MultitowerError:
    """The outcome of a call whose own timeout is over, by the clock of this client."""
    return make(Reason.DEADLINE, f"{what}, which this client was given", limit="timeout")


class Connection:
    """A connection that opens by itself, and again after it was lost.

    Args:
        endpoint: the daemon's.
        retries: how often a call that the daemon refused without running it is sent again.
        peer_timeout: seconds without a sign of the daemon after which the connection counts as lost; 0 for never.
        credentials: for CURVE; None for a connection without it.

    Attributes:
        endpoint: the same.

    Raises:
        InvalidEndpoint: the endpoint is malformed.
        Unavailable: `not_listening`: this process can open no socket (`no_socket`).
        RuntimeError: gevent or eventlet have patched threads or `select`.
    """

    def __init__(
        self,
        endpoint: str,
        retries: int = 0,
        peer_timeout: float = liveness.PEER_TIMEOUT_S,
        credentials: Credentials | None = None,
    ) -> None:
        check_primitives()
        self.endpoint = endpoint
        self._pid = os.getpid()
        try:
            self._transport = Transport(endpoint, peer_timeout, credentials)
            try:
                self._direct = DirectPath(self._transport)
            except OSError:
                self._transport.close()
                raise
        except OSError as error:
            raise no_socket(endpoint, error).to_error() from None
        self._retries = Retries(retries)
        self._cancelled: deque[Call] = deque()
        self._shared_memory_from = _NEVER  # when the daemon accepts shared memory, monotonic seconds
        self._connected = False  # the handshake is done, and the greeting was sent
        self._blocked = False  # the socket takes no more messages for now
        self._thread = threading.Thread(target=self._run, name="multitower-client", daemon=True)
        self._thread.start()
        _open.add(self)

    # From any thread.

    @property
    def accepts_shared_memory(self) -> bool:
        """Whether the daemon accepts tensors in shared memory now, as far as is known."""
        since = self._shared_memory_from
        return since == 0.0 or since <= time.monotonic()

    @property
    def in_own_thread(self) -> bool:
        """Whether the caller runs in the connection's thread: in a callback."""
        return threading.current_thread() is self._thread

    def check_usable(self) -> None:
        """Refuses use after `close`, and in a forked child.

        Raises:
            Unavailable: `closed`.
        """
        if self._pid != os.getpid():
            message = "this client was made before a fork: make a new one in the child process"
            raise make(Reason.CLOSED, message)
        if self._transport.closing:
            raise make(Reason.CLOSED, "this client has been closed")

    def start(self, call: Call, *, wait: bool = False) -> None:
        """Sends a call as soon as possible. Its outcome is passed to `call.done`.

        Args:
            call: what to send.
            wait: whether to wait for the outcome here, if the caller's thread can read the reply itself. No other
                thread may know of the call then.
        """
        if self._direct.send_and_wait(call) if wait else self._direct.send(call):
            return
        self._transport.new.append(call)
        self._transport.waker.wake()
        if self._transport.ended:
            self._fail_new()

    def cancel(self, call: Call) -> None:
        """Drops a call that nobody waits for: a call that was not sent yet never is; else the daemon is told."""
        if self._pid == os.getpid():
            self._cancelled.append(call)
            self._transport.waker.wake()

    def stop(self) -> None:
        """Ends the connection soon; returns at once. Calls without an outcome fail as `closed`."""
        if self._pid == os.getpid():
            self._transport.closing = True
            self._transport.waker.wake(always=True)

    def join(self, timeout: float = CLOSE_S) -> None:
        """Waits until the connection has ended, at most `timeout` seconds. No-op in its own thread."""
        if self._pid == os.getpid() and not self.in_own_thread:
            self._thread.join(timeout)

    # In the connection's thread.

    def _run(self) -> None:
        transport = self._transport
        poll = select.poll()
        for descriptor in (transport.socket.fileno(), *transport.socket.descriptors, transport.waker.fileno()):
            poll.register(descriptor, select.POLLIN)
        transport.lock.acquire()
        try:
            transport.socket.advance(time.monotonic())
            self._handle_connection_events()  # a monitor's descriptor reports changes from here on
            while not transport.closing:
                ready = self._sleep(poll)
                if transport.waker.fileno() in ready:
                    transport.waker.clear()
                self._receive()
                now = time.monotonic()
                transport.socket.advance(now)
                if transport.socket.has_events(ready):
                    self._handle_connection_events()
                if now >= self._retries.due:
                    transport.new.extend(self._retries.pop_due(now))
                self._collect_new()
                self._settle_cancelled()
                if transport.unsent and not transport.greeted:
                    self._fail_refused()
                self._send_unsent()
                if now >= transport.next_check:
                    self._expire(now)
        finally:
            transport.closing = True
            self._end()
            transport.lock.release()

    def _sleep(self, poll: select.poll) -> list[int]:
        """Waits until something has arrived or is due; returns the descriptors that are readable."""
        transport = self._transport
        transport.waker.needed = True
        # Checked after setting `needed`: calls that were handed over before have not woken the thread.
        waiting = transport.new or self._cancelled or transport.closing or transport.unread
        # The descriptor may have reported this already.
        ready_now = waiting or transport.socket.is_ready(to_send=self._blocked or bool(transport.postponed))
        timeout = 0 if ready_now else self._sleep_ms()
        transport.lock.release()
        ready = poll.poll(timeout)
        transport.lock.acquire()
        transport.waker.needed = False
        return [descriptor for descriptor, _ in ready]

    def _sleep_ms(self) -> int | None:
        until = min(self._transport.next_check, self._retries.due, self._transport.socket.due)
        if until == _NEVER:
            return None
        return min(max(0, int((until - time.monotonic()) * 1000) + 1), MAX_SLEEP_MS)

    def _collect_new(self) -> None:
        transport = self._transport
        while transport.new:
            call = transport.new.popleft()
            transport.unsent.append(call)
            transport.next_check = min(transport.next_check, call.deadline)
            if not transport.greeted:
                transport.next_check = min(transport.next_check, call.connect_by)
                transport.probe.begin()

    def _settle_cancelled(self) -> None:
        transport = self._transport
        while self._cancelled:
            call = self._cancelled.popleft()
            self._direct.end_lead(call)
            if call.over:
                continue
            # A thread that waits for several futures learns only from this that one of them was cancelled.
            self._settle(call, make(Reason.CANCELLED, "the request was cancelled"))
            call.body = ()  # in `unsent` the call remains until it is first
            if transport.outstanding.pop(call.id, None) is not None:
                transport.send_request(wire.CANCEL, call.id)

    def _send_unsent(self) -> None:
        transport = self._transport
        self._blocked = False
        if not transport.send_postponed():
            return
        while transport.unsent and transport.greeted:
            call = transport.unsent[0]
            if call.over:
                transport.unsent.popleft()
                continue
            if call.size > transport.message_limit:
                transport.unsent.popleft()
                limit = transport.message_limit
                message = f"the message has {call.size} bytes; the daemon's max_message_size is {limit}"
                self._settle(call, make(Reason.TOO_LARGE, message, field="frames"))
                continue
            try:
                transport.send_call(call, at_once=False)
            except zmq.Again:
                self._blocked = True
                return
            transport.unsent.popleft()
        transport.socket.flush()

    def _receive(self) -> None:
        """Handles all messages that have arrived."""
        transport = self._transport
        while (message := transport.receive()) is not None:
            if len(message) < 4 or message[0] != wire.DELIMITER:
                continue  # not a reply of the protocol
            kind, id, header = message[1], message[2], bytes(message[3])
            if id == _GREETING_ID:
                self._read_greeting(kind, header)
                continue
            call = transport.outstanding.pop(id, None)
            if call is None:
                continue  # cancelled or expired meanwhile
            if kind == wire.OK:
                self._settle(call, [header, *message[4:]])
            else:
                self._handle_error(call, error_of(header))

    def _handle_error(self, call: Call, error: MultitowerError) -> None:
        if call.without_shared_memory is not None and _refuses_shared_memory(error):
            # The request has not run. The next ones use no shared memory at all, or for as long as the daemon says.
            delay = retry_after(error)
            accepted_from = _NEVER if delay is None else time.monotonic() + delay
            self._shared_memory_from = max(self._shared_memory_from, accepted_from)
            self._send_in_frames(call, error)
        elif not self._retries.schedule(call, error, time.monotonic()):
            self._settle(call, error)

    def _send_in_frames(self, call: Call, refusal: MultitowerError) -> None:
        assert call.without_shared_memory is not None  # it uses shared memory
        try:
            (call.header, call.body), call.without_shared_memory = call.without_shared_memory(), None
        except Exception as error:  # noqa: BLE001  no memory for a copy concerns this call only
            message = f"{refusal.message}; and it cannot be sent in frames: {error!r}"
            self._settle(call, make(Reason.MALFORMED, message, field=refusal.details.get("field")))
        else:
            self._transport.unsent.append(call)

    def _handle_connection_events(self) -> None:
        transport = self._transport
        events = transport.socket.connection_events()
        for event in events:
            if event == zmq.EVENT_CONNECTED:
                transport.probe.record_connected()
            elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._connected = True
                transport.socket.record_success()
                # Dropped if the connection has ended again; the next one sends it anew.
                transport.send_request(wire.SERVER_METADATA, _GREETING_ID)
            elif event == zmq.EVENT_DISCONNECTED:
                self._fail_outstanding()
            elif event == zmq.EVENT_CONNECT_RETRIED:
                transport.probe.record_failure()
            elif event in HANDSHAKE_FAILED:
                transport.probe.record_failed_handshake(transport.socket.refusal)
        if zmq.EVENT_CONNECT_RETRIED in events and not self._connected:
            transport.socket.try_other_family()
            if transport.unsent:
                transport.probe.begin()

    def _fail_refused(self) -> None:
        """Fails what waits for a connection that the keys prevent; a later attempt may succeed."""
        transport = self._transport
        refusal = transport.probe.refusal()
        if refusal is not None:
            refused, transport.unsent = transport.unsent, deque()
            for call in refused:
                self._settle(call, refusal.to_error())

    def _fail_outstanding(self) -> None:
        """The connection was lost."""
        transport = self._transport
        self._receive()  # replies that arrived before the end count
        self._connected = transport.greeted = False
        transport.postponed.clear()
        self._shared_memory_from = _NEVER
        lost, transport.outstanding = transport.outstanding, {}
        for call in lost.values():
            message = f"the connection to {self.endpoint} was lost before the answer came"
            self._settle(call, make(Reason.CONNECTION_LOST, message))
        # Unsent calls wait until `connect_by` for the daemon to listen again.
        transport.next_check = min((call.connect_by for call in transport.unsent), default=transport.next_check)

    def _read_greeting(self, kind: bytes, header: bytes) -> None:
        """Takes the daemon's limits from its metadata; defaults hold where it names none."""
        transport = self._transport
        transport.greeted = True
        transport.probe.record_answer()
        transport.message_limit = wire.DEFAULT_MAX_MESSAGE_SIZE
        try:
            metadata = read_header(header) if kind == wire.OK else {}
        except MultitowerError:
            metadata = {}
        limit = metadata.get("max_message_size")
        if type(limit) is int and limit > 0:
            transport.message_limit = limit
        extensions = metadata.get("extensions")
        local = self.endpoint.startswith("ipc:")
        if local and isinstance(extensions, list) and wire.SHARED_MEMORY_EXTENSION in extensions:
            self._shared_memory_from = 0.0

    def _expire(self, now: float) -> None:
        """Fails the calls whose time is over. Called at the earliest deadline known: rarely, under load."""
        transport = self._transport
        for call in [call for call in transport.outstanding.values() if call.deadline <= now]:
            del transport.outstanding[call.id]
            self._settle(call, _timeout_error("no answer within the timeout of the request"))
            # The daemon's own clock started later, when the request reached it.
            transport.send_request(wire.CANCEL, call.id)
        self._expire_unsent(now)
        times = [call.deadline for call in transport.outstanding.values()]
        times += [
            call.deadline if transport.greeted else min(call.deadline, call.connect_by) for call in transport.unsent
        ]
        transport.next_check = min(times, default=_NEVER)

    def _expire_unsent(self, now: float) -> None:
        transport = self._transport
        expired: list[Call] = []
        kept: deque[Call] = deque()
        for call in transport.unsent:
            over = call.deadline <= now or (not transport.greeted and call.connect_by <= now)
            (expired if over else kept).append(call)
        transport.unsent = kept
        if expired and not transport.greeted:
            transport.probe.update()  # once for all of them
        for call in expired:
            self._settle(call, self._error_of_unsent(now - call.started))

    def _error_of_unsent(self, waited_s: float) -> MultitowerError:
        """Why a call could not be sent in time, after it has waited for so many seconds."""
        if self._transport.greeted:
            return _timeout_error("the timeout of the request was over before it could be sent")
        return self._transport.probe.finding(waited_s).to_error()

    def _settle(self, call: Call, outcome: Outcome) -> None:
        call.settle(outcome)
        self._direct.notify(call)

    def _end(self) -> None:
        """Fails all calls and closes the transport."""
        transport = self._transport
        self._collect_new()
        for call in (*transport.unsent, *transport.outstanding.values(), *self._retries.pop_due(_NEVER)):
            self._settle(call, make(Reason.CLOSED, "this client has been closed"))
        transport.unsent.clear()
        transport.outstanding.clear()
        transport.close()
        self._direct.close()
        self._fail_new()

    def _fail_new(self) -> None:
        """Fails the calls that were handed over while the thread ended; from any thread."""
        while True:
            try:
                call = self._transport.new.popleft()
            except IndexError:
                return
            call.settle(make(Reason.CLOSED, "this client has been closed"))


_open: weakref.WeakSet[Connection] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Ends all connections before the interpreter does: sockets must not be torn down under a running thread."""
    for connection in list(_open):
        connection.stop()
        connection.join(1.0)
