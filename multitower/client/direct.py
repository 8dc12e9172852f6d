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

from multitower import frames, wire
from multitower.client.transport import Call, Transport


class WakeupSwitch:
    """Decides which thread a socket wakes: the connection's, or a leader.

    The thread sleeps on an epoll instance that contains the socket. Removing the socket's events from it takes the
    wake-ups from the thread without waking it. An eventfd wakes the leader when its call is settled by the thread.
    The caller must hold the transport's lock, except for `wait`.

    Args:
        socket: the socket's descriptor.
    """

    def __init__(self, socket: int) -> None:
        self._socket = socket
        self._epoll = select.epoll()
        self._epoll.register(socket, select.EPOLLIN)
        self._event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._notified = False
        self._poll = select.poll()
        self._poll.register(socket, select.POLLIN)
        self._poll.register(self._event, select.POLLIN)

    def fileno(self) -> int:
        """The descriptor that the thread sleeps on."""
        return self._epoll.fileno()

    def close(self) -> None:
        """Closes the descriptors. No thread may sleep on them."""
        self._epoll.close()
        os.close(self._event)

    def wake_leader(self) -> None:
        """From now on the socket wakes the leader and not the thread."""
        self._epoll.modify(self._socket, 0)

    def wake_thread(self) -> None:
        """From now on the socket wakes the thread: at once if a message has arrived."""
        if self._notified:
            with contextlib.suppress(BlockingIOError):  # read already, and then Ctrl-C
                os.eventfd_read(self._event)
            self._notified = False
        self._epoll.modify(self._socket, select.EPOLLIN)

    def notify_leader(self) -> None:
        """Ends the leader's `wait`."""
        if not self._notified:
            self._notified = True
            os.eventfd_write(self._event, 1)

    def wait(self) -> None:
        """Sleeps until a message has arrived or `notify_leader` is called."""
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
        descriptor = transport.socket.fileno()
        # Only Linux has both; elsewhere every reply is read by the connection's thread.
        linux = hasattr(select, "epoll") and hasattr(os, "eventfd")
        self._switch = WakeupSwitch(descriptor) if linux else None
        self._readable = select.poll()
        self._readable.register(descriptor, select.POLLIN)

    def fileno(self) -> int:
        """The descriptor that the connection's thread sleeps on."""
        return self._transport.socket.fileno() if self._switch is None else self._switch.fileno()

    # From any thread.

    def send(self, call: Call) -> bool:
        """Sends a call if the connection's thread sleeps.

        Returns:
            Whether the call was sent; if not, it has to be handed over to the thread.
        """
        # A loop of one iteration: Ctrl-C can come between a call and the statement after it, but not between `acquire`
        # and the body of the loop, so that the lock is always released.
        for locked in map(self._transport.lock.acquire, (False,)):
            try:
                return locked and self._try_to_send(call)
            except BaseException:
                self._transport.waker.wake()  # the thread may have to compute its time-out again
                raise
            finally:
                if locked:
                    self._transport.lock.release()
        return False

    def _try_to_send(self, call: Call) -> bool:
        transport = self._transport
        if not transport.greeted or transport.closing or transport.new or transport.unsent:
            return False
        if call.size > transport.message_limit:
            return False
        if self._readable.poll(0):
            return False  # a message has arrived: the thread wakes anyway, and has to read it first
        try:
            transport.send_call(call)
        except zmq.Again:
            return False
        # The socket's descriptor reports only changes, and sending may have consumed one. The thread sleeps until the
        # earliest deadline that it knew of.
        wake = call.deadline < transport.next_check or frames.readable(transport.socket)
        transport.next_check = min(transport.next_check, call.deadline)
        if wake:
            transport.waker.wake()
        return True

    def lead(self, call: Call) -> None:
        """Waits for a call's outcome if its reply is the only one outstanding; else returns at once.

        The call's outcome may be handled in the caller's thread: no other thread may know of the call.
        """
        transport, switch = self._transport, self._switch
        if switch is None or len(transport.outstanding) != 1:
            return
        leads = True
        try:
            with transport.lock:
                if self.leader is not None or len(transport.outstanding) != 1 or call.id not in transport.outstanding:
                    leads = False
                    return
                self.leader = call  # first: from here on `finally` undoes it, whatever happens
                switch.wake_leader()
            while leads:
                switch.wait()
                with transport.lock:
                    if not transport.ended:
                        self._read_reply(call)
                    if call.over:
                        self._stop_leading(switch)
                        leads = False
                    elif transport.unread:
                        transport.waker.wake()
        finally:
            if leads:  # Ctrl-C, at any moment
                with transport.lock:
                    if self.leader is call:
                        self._stop_leading(switch)

    def _read_reply(self, call: Call) -> None:
        """Settles the call by its `MT1:ok` reply; keeps every other message for the connection's thread."""
        transport = self._transport
        while (message := frames.receive(transport.socket)) is not None:
            if (
                len(message) > 3
                and (message[0], message[1], message[2]) == (wire.DELIMITER, wire.OK, call.id)
                and transport.outstanding.pop(call.id, None) is not None
            ):
                call.settle([bytes(message[3]), *message[4:]])
            else:
                transport.unread.append(message)

    def _stop_leading(self, switch: WakeupSwitch) -> None:
        if self._transport.ended:
            self.leader = None
            switch.close()
            return
        switch.wake_thread()
        self.leader = None  # last: Ctrl-C before it makes `lead` call this again
        if self._transport.unread or frames.readable(self._transport.socket):
            self._transport.waker.wake()

    # In the connection's thread, which holds the lock.

    def notify(self, call: Call) -> None:
        """Wakes the caller of a call that was settled by the connection's thread, if it leads."""
        if call is self.leader and self._switch is not None:
            self._switch.notify_leader()

    def close(self) -> None:
        """Closes the descriptors; a leader that is still to be woken closes them afterwards."""
        if self._switch is not None and self.leader is None:
            self._switch.close()
