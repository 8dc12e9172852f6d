"""What callers do themselves while the connection's thread sleeps, which saves waking it.

A caller sends its own call. It also reads its own reply, if that is the only one outstanding: it becomes the *leader*,
in the sense of the leader/followers pattern. The connection's thread sleeps meanwhile and remains responsible for
deadlines, lost connections and every other message.
"""

from __future__ import annotations

import contextlib
import os
import select

import zmq

from multitower import wire
from multitower.client.transport import Call, Transport


class LeaderWait:
    """Where a leader sleeps: on the socket, and on an eventfd for when its call is settled by the connection's thread.

    The caller must hold the transport's lock, except for `wait`.
    """

    def __init__(self) -> None:
        self._event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._notified = False
        self._descriptor = -1
        self._poll = select.poll()
        self._poll.register(self._event, select.POLLIN)

    def close(self) -> None:
        """Closes the eventfd. No leader may sleep."""
        os.close(self._event)

    def clear(self) -> None:
        """Prepares for the next leader."""
        if self._notified:
            with contextlib.suppress(BlockingIOError):  # read already, and then Ctrl-C
                os.eventfd_read(self._event)
            self._notified = False

    def notify(self) -> None:
        """Ends the leader's `wait`."""
        if not self._notified:
            self._notified = True
            os.eventfd_write(self._event, 1)

    def wait(self, descriptor: int) -> None:
        """Sleeps until a message has arrived or `notify` is called.

        Args:
            descriptor: the socket's; -1 where there is no connection.
        """
        if descriptor != self._descriptor:
            if self._descriptor >= 0:
                self._poll.unregister(self._descriptor)
            self._descriptor = descriptor
            if descriptor >= 0:
                self._poll.register(descriptor, select.POLLIN)
        self._poll.poll()


class DirectPath:
    """Lets callers use a transport while the connection's thread sleeps.

    Args:
        transport: the connection's.

    Attributes:
        leader: the call whose caller reads its own reply; None when there is none.
    """

    def __init__(self, transport: Transport) -> None:
        self.leader: Call | None = None
        self._transport = transport
        # Only Linux has both; elsewhere every reply is read by the connection's thread.
        self._wait = LeaderWait() if transport.socket.can_divert and hasattr(os, "eventfd") else None
        self._readable = select.poll()
        self._readable.register(transport.socket.fileno(), select.POLLIN)

    # From any thread.

    def send(self, call: Call) -> bool:
        """Sends a call if the connection's thread sleeps.

        Returns:
            Whether the call was sent; if not, it has to be handed over to the thread.
        """
        return self._send(call, lead=False)

    def send_and_wait(self, call: Call) -> bool:
        """Sends a call as `send` does, and waits for its outcome if its reply is the only one outstanding.

        The outcome is then handled in the caller's thread: no other thread may know of the call.

        Returns:
            Whether the call was sent.
        """
        try:
            sent = self._send(call, lead=True)
            if sent and self.leader is call:
                self._lead(call)
            return sent
        finally:
            if self.leader is call:  # it could not be sent; or Ctrl-C, at any moment
                with self._transport.lock:
                    if self.leader is call:
                        self._stop_leading()
                self._transport.waker.wake()  # Ctrl-C may have left an ended connection to the thread

    def _send(self, call: Call, *, lead: bool) -> bool:
        # A loop of one iteration: Ctrl-C can come between a call and the statement after it, but not between `acquire`
        # and the body of the loop, so that the lock is always released.
        for locked in map(self._transport.lock.acquire, (False,)):
            try:
                return locked and self._try_to_send(call, lead=lead)
            except BaseException:
                self._transport.waker.wake()  # the thread may have to compute its time-out again
                raise
            finally:
                if locked:
                    self._transport.lock.release()
        return False

    def _try_to_send(self, call: Call, *, lead: bool) -> bool:
        transport = self._transport
        if not transport.greeted or transport.closing or transport.new or transport.unsent:
            return False
        if call.size > transport.message_limit:
            return False
        if self._readable.poll(0):
            return False  # a message has arrived: the thread wakes anyway, and has to read it first
        if lead and self._wait is not None and self.leader is None and not transport.outstanding:
            # Before the call is sent: its reply may arrive at once, and would wake the thread. The leader is set first:
            # from here on `send_and_wait` undoes it, whatever happens.
            self.leader = call
            transport.socket.divert(True)
        try:
            transport.send_call(call)
        except zmq.Again:
            return False
        # A DEALER's descriptor reports only changes, and sending may have consumed one. The thread sleeps until the
        # earliest deadline that it knew of.
        wake = call.deadline < transport.next_check or (self.leader is not call and transport.socket.has_arrivals())
        transport.next_check = min(transport.next_check, call.deadline)
        if wake:
            transport.waker.wake()
        return True

    def _lead(self, call: Call) -> None:
        """Waits for the outcome of the leader's call."""
        transport, wait = self._transport, self._wait
        assert wait is not None  # there is a leader
        with transport.lock:
            arrived = not transport.ended and transport.socket.has_arrivals()
            descriptor = transport.socket.descriptor
        while True:
            if not arrived:
                wait.wait(descriptor)
            arrived = False
            with transport.lock:
                if not transport.ended:
                    self._read_reply(call)
                    descriptor = transport.socket.descriptor
                if call.over:
                    self._stop_leading()
                    return
                if transport.unread or (not transport.ended and transport.socket.has_arrivals()):
                    transport.waker.wake()

    def _read_reply(self, call: Call) -> None:
        """Settles the call by its `MT1:ok` reply; keeps every other message for the connection's thread."""
        transport = self._transport
        while (message := transport.socket.receive()) is not None:
            if (
                len(message) > 3
                and (message[0], message[1], message[2]) == (wire.DELIMITER, wire.OK, call.id)
                and transport.outstanding.pop(call.id, None) is not None
            ):
                call.settle([bytes(message[3]), *message[4:]])
            else:
                transport.unread.append(message)

    def _stop_leading(self) -> None:
        wait = self._wait
        assert wait is not None  # there is a leader
        if self._transport.ended:
            self.leader = None
            wait.close()
            return
        wait.clear()
        self._transport.socket.divert(False)
        self.leader = None  # last: Ctrl-C before it makes `send_and_wait` call this again
        if self._transport.unread or self._transport.socket.has_arrivals():
            self._transport.waker.wake()

    # In the connection's thread, which holds the lock.

    def notify(self, call: Call) -> None:
        """Wakes the caller of a call that was settled by the connection's thread, if it leads."""
        if call is self.leader and self._wait is not None:
            self._wait.notify()

    def end_lead(self, call: Call) -> None:
        """Ends the lead of a call that was cancelled: a second Ctrl-C can prevent its caller from doing so.

        Its caller must have stopped waiting. That a call has its outcome does not suffice: its caller may not have read
        the notification yet.
        """
        if call is self.leader:
            self._stop_leading()

    def close(self) -> None:
        """Closes the descriptor; a leader that is still to be woken closes it afterwards."""
        if self._wait is not None and self.leader is None:
            self._wait.close()
