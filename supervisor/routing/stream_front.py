"""A front socket of stream sockets that the daemon's loop reads and writes itself, without a thread of libzmq.

It is a ZeroMQ ROUTER socket on the wire (ZMTP 3, mechanism NULL; `multitower/message_stream.py`): DEALER, REQ and
ROUTER sockets may connect. A request wakes one thread here and its reply none; libzmq wakes two on the way in and one
on the way out. Unlike libzmq's ROUTER it names each connection itself, and does not look at the identity of the peer.

All connections are in one epoll, which the loop's epoll watches. A connection is read once in each turn, so that a
client that sends without end does not keep others waiting; what has been read is handled one message of each client at
a time. Replies are collected until the loop waits, and then written with one system call for each connection.
"""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from multitower import wire, zmtp
from multitower.buffers import Buffers
from multitower.message_stream import READ_BYTES, MessageStream
from multitower.zmtp import ZmtpError

from ..loop.log import event
from ..loop.reactor import unwatched
from ..security.entrance import Entrance
from .acceptor import PathListener, StreamListener
from .binding import listening_error
from .connections import Connections
from .front_socket import LOG_EVERY_S, MAX_FRAMES, FrontSocket, Incoming, dropped_reply, incoming, reply_bytes
from .peer_watch import PeerWatch
from .stream_peer import StreamPeer, Written
from .unread import REPLY_OVERHEAD, Backlog, Mark, UnreadReplies

log = logging.getLogger("multitower.router")

READS: Final = 8
"""System calls that read from one connection in a turn, while it has more."""

MAX_LOOKS: Final = 32
"""Connections without a message that are looked at before other sources of the loop have their turn."""

MAX_KEPT: Final = 64
"""Buffers of replies that are collected for one connection before they are written."""

MAX_FREE_BYTES: Final = 32 << 20
"""Of memory for large frames of all clients that is used again."""

_buffers: Final = Buffers(MAX_FREE_BYTES)


class StreamFront(FrontSocket):
    """One bound socket, and its connections.

    Args:
        endpoint: `ipc://PATH`, or what `listen` can bind.
        max_message_size: bytes of a request. A connection that sends a frame of over twice that is closed.
        unread: counts what clients leave unread; shared by all front sockets.
        connections: says when clients are accepted.
        buffer_bytes: what the kernel shall hold on its way to a client; 0 for what it holds by default.
        entrance: finds who sends its messages, by the user that has connected; None without `security`.

    Raises:
        HeldError: another process listens there.
        NotBindableYetError: the endpoint cannot be bound now, but perhaps later.
        OSError: the endpoint cannot be bound.
    """

    def __init__(
        self,
        endpoint: str,
        max_message_size: int,
        unread: UnreadReplies,
        connections: Connections,
        buffer_bytes: int = 0,
        entrance: Entrance | None = None,
        listen: Callable[[str, Connections, Callable[[socket.socket], None]], StreamListener] = PathListener,
    ) -> None:
        super().__init__(endpoint, unread, connections, entrance)
        # What a message with too many bytes has is kept until there are too many, so that it gets its error.
        self._limits = zmtp.Limits(2 * max_message_size, MAX_FRAMES, max_message_size)
        self._buffer_bytes = buffer_bytes
        self._peers: dict[bytes, StreamPeer] = {}
        self._by_descriptor: dict[int, StreamPeer] = {}
        self._made = 0
        self._ready: deque[StreamPeer] = deque()
        self._held: list[StreamPeer] = []
        self._refused = 0
        self._logged = 0.0
        try:
            poll = select.epoll()
        except OSError as error:
            raise listening_error(endpoint, error) from None
        self._poll: select.epoll | None = poll
        self._descriptor = poll.fileno()
        try:
            self._listener = listen(endpoint, connections, self._add)
        except BaseException:
            poll.close()
            raise
        self.endpoint = self._listener.endpoint
        self._watch = PeerWatch(self._listener.peer_timeout_s)
        self.recheck = self.flush  # without a loop, nothing is collected

    @property
    def local(self) -> bool:
        """See `FrontSocket.local`."""
        return self._listener.local

    def restore(self, endpoint: str) -> bool:
        """See `FrontSocket.restore`."""
        try:
            return self._listener.restore(endpoint)
        finally:
            self.endpoint = self._listener.endpoint

    def touch(self) -> None:
        """See `FrontSocket.touch`."""
        self._listener.touch()

    def close(self, linger_ms: int = 0) -> None:
        """See `FrontSocket.close`; it also removes the path."""
        poll = self._poll
        if poll is None:
            return
        self._listener.close()
        self.flush()
        if linger_ms:
            self._linger(time.monotonic() + linger_ms / 1000)
        for peer in list(self._peers.values()):
            self._drop(peer)
        self._poll = None
        poll.close()
        self.recheck = unwatched  # otherwise its memory would wait for the collector of cycles

    def _linger(self, until: float) -> None:
        """Writes what is kept, as far as clients read, until that time.

        Over tcp it also waits until clients close their side. When a connection is closed that has something unread,
        the kernel resets it and throws away what is on its way.
        """
        poll = select.poll()
        waiting: dict[int, StreamPeer] = {}
        for peer in self._peers.values():
            if peer.stream.unsent or (peer.open and self._end_output(peer)):
                waiting[peer.descriptor] = peer
                poll.register(peer.descriptor, select.POLLOUT if peer.stream.unsent else select.POLLIN)
        while waiting and (left := until - time.monotonic()) > 0:
            for descriptor, _ in poll.poll(max(1, int(left * 1000))):
                peer = waiting[descriptor]
                if not peer.stream.unsent:
                    ended = _discard(peer.stream.socket)
                else:
                    self._write_rest(peer)
                    if peer.stream.unsent:
                        continue
                    ended = not self._end_output(peer)
                    poll.modify(descriptor, select.POLLIN)
                if ended:
                    poll.unregister(descriptor)
                    del waiting[descriptor]

    def _end_output(self, peer: StreamPeer) -> bool:
        """Tells a client over tcp that nothing follows; returns whether its end is to be waited for."""
        if self.local:
            return False
        try:
            peer.stream.socket.shutdown(socket.SHUT_WR)
        except OSError:  # it has gone
            return False
        return True

    # Connections.

    def _add(self, connection: socket.socket) -> None:
        """Takes a connection that has been accepted."""
        poll = self._poll
        assert poll is not None  # until `close`
        try:
            origin = self._listener.prepare(connection)
            stream = MessageStream(connection, "ROUTER", _buffers.allocate, self._buffer_bytes, self._limits)
        except OSError:  # it has gone
            connection.close()
            return
        self._made += 1
        # Longer than the names that libzmq makes, and like these beginning with a zero byte.
        peer = StreamPeer(self._made.to_bytes(9, "big"), stream, origin)
        self._peers[peer.name] = peer
        self._by_descriptor[peer.descriptor] = peer
        self._watch.add(peer, time.monotonic())
        try:
            poll.register(peer.descriptor, select.EPOLLIN)
        except OSError:  # the system's limit of watched descriptors
            self._drop(peer)

    def tick(self, now: float) -> None:
        """Closes connections that did not begin as they should or are silent; see `FrontSocket.tick`."""
        for peer, allowed in self._watch.handshakes.take_late(now, self._connections.crowded):
            self._refuse(peer, f"no handshake within {allowed:.0f} s")
        for peer, silent in self._watch.take_due(now):
            if silent:
                self._drop(peer)
            else:
                self._settle(peer)
        _buffers.collect()
        if self._refused and now >= self._logged + LOG_EVERY_S:
            event(log, logging.WARNING, "connections are closed that do not follow the protocol", count=self._refused)
            self._refused, self._logged = 0, now

    def _refuse(self, peer: StreamPeer, cause: object) -> None:
        """Closes the connection of a client that does not follow the protocol."""
        self._refused += 1
        if self._refused == 1 and time.monotonic() >= self._logged + LOG_EVERY_S:
            self._refused, self._logged = 0, time.monotonic()
            fields = {"endpoint": self.endpoint, **peer.origin.fields, "cause": cause}
            event(log, logging.WARNING, "a client's connection is closed", **fields)
        self._drop(peer)

    def _drop(self, peer: StreamPeer) -> None:
        """Closes a connection: what is unsent is lost, and counts as unread no more."""
        if self._peers.pop(peer.name, None) is None:
            return
        self._connections.forget(peer.descriptor)
        del self._by_descriptor[peer.descriptor]
        if self._poll is not None:
            # A process that is being started may have the descriptor, too; then closing it would not remove it.
            with contextlib.suppress(OSError):
                self._poll.unregister(peer.descriptor)
        self._watch.forget(peer)
        peer.stream.close()
        peer.arrived = False
        self._unread.collect(peer.backlog, time.monotonic())

    # Requests.

    @property
    def descriptor(self) -> int:
        """The descriptor of an epoll, readable while any connection has something."""
        return self._descriptor

    @property
    def readable(self) -> bool:
        """Whether a message may be in what has been read; the descriptor reports what has not been read."""
        return bool(self._ready)

    def look(self) -> bool:
        """Writes the replies that have been collected; see `FrontSocket.look`."""
        self.flush()
        if self._ready:
            # One read may bring thousands of messages. Other clients, and those that wait to read, do not wait for all.
            self._find_arrivals()
        return bool(self._ready)

    def _find_arrivals(self) -> None:
        """Looks which connections have something to read, and writes to those that wait for it."""
        poll = self._poll
        if poll is None:
            return
        for descriptor, events in poll.poll(0):
            peer = self._by_descriptor.get(descriptor)
            if peer is None:
                continue  # it was dropped for an event before this one
            if events & select.EPOLLOUT:
                self._write_rest(peer)
            if events & ~select.EPOLLOUT:
                peer.arrived = peer.heard = True
                if not peer.queued:
                    peer.queued = True
                    self._ready.append(peer)

    def receive(self) -> Incoming | None:
        """The next message, or None if there is none."""
        ready = self._ready
        if not ready:
            self._find_arrivals()
        for _ in range(MAX_LOOKS):
            if not ready:
                return None
            peer = ready.popleft()
            peer.queued = False
            stream = peer.stream
            try:
                message = stream.next_message()
                if message is None and peer.arrived:
                    message = self._read(peer)
                if stream.pinged:
                    stream.answer_pings()
                    self._settle(peer)
            except (ZmtpError, MemoryError) as error:
                self._refuse(peer, error)
                continue
            except OSError:
                self._drop(peer)
                continue
            if message is not None:
                if not peer.open:
                    self._watch.open(peer)
                if peer.arrived or stream.undecoded:
                    peer.queued = True
                    ready.append(peer)
                return incoming(peer.name, message, 0, peer.address)
            if stream.ended:
                self._drop(peer)
        self.recheck()  # other sources have their turn first
        return None

    def _read(self, peer: StreamPeer) -> list[Any] | None:
        """Reads what has arrived from a connection, until there is a message; returns it."""
        stream = peer.stream
        message: list[Any] | None = None
        for _ in range(READS):
            if not stream.read():
                break
            message = stream.next_message()
            # What is no message, such as heartbeats, is read once in a turn: it takes time as well.
            if message is not None or stream.drained or not stream.fills_frame:
                break
        peer.arrived = False
        return message

    # Replies.

    def _find_backlog(self, client: bytes) -> Backlog:
        peer = self._peers.get(client)
        return Backlog() if peer is None else peer.backlog

    def reply(self, address: Sequence[bytes], kind: bytes, id: bytes, body: Sequence[Any]) -> bool:
        """Sends the reply to an executed request; see `FrontSocket.reply`."""
        small, large = reply_bytes(address, body)
        is_large = large > 0
        peer = self._peers.get(address[0])
        if peer is None:
            self.dropped += 1
            return is_large
        if (
            is_large
            and self._unread.total >= self._unread.high
            and self._unread.drops_reply(peer.backlog, time.monotonic())
        ):
            self.dropped += 1
            body = (wire.dump_json(dropped_reply(peer.backlog.unread).to_wire()),)
            kind, small, large = wire.ERROR, REPLY_OVERHEAD + len(body[0]), 0
        peer.stream.hold((*address[1:], wire.DELIMITER, kind, id, *body))
        peer.backlog.unmarked += small
        peer.large += large
        if is_large or peer.stream.kept >= MAX_KEPT:
            self._write(peer)
        elif not peer.held:
            peer.held = True
            self._held.append(peer)
            if len(self._held) == 1:
                self.recheck()
        return is_large

    def flush(self) -> None:
        """Writes the replies that have been collected."""
        if self._held:
            held, self._held = self._held, []
            for peer in held:
                peer.held = False
                try:
                    self._write(peer)
                except Exception as error:  # noqa: BLE001  it is logged
                    # A defect of multitower. Only this client pays.
                    self._errors.add("writing replies", error, {"endpoint": self.endpoint})
                    self._drop(peer)

    def _write(self, peer: StreamPeer) -> None:
        """Writes what is kept for a connection, unless it waits until the kernel takes something again."""
        if not peer.stream.unsent:
            self._flush(peer)
        self._settle(peer)

    def _write_rest(self, peer: StreamPeer) -> None:
        """Writes what is kept for a connection from which the kernel takes something again."""
        self._flush(peer)
        self._settle(peer)
        self._unread.collect(peer.backlog, time.monotonic())

    def _flush(self, peer: StreamPeer) -> None:
        try:
            peer.stream.flush()
        except OSError:
            # Part of a frame may have been written, behind which nothing else may follow. Reading notices the end next.
            peer.stream.drop_unsent()
            with contextlib.suppress(OSError):
                peer.stream.socket.shutdown(socket.SHUT_RDWR)

    def _settle(self, peer: StreamPeer) -> None:
        """Counts what the kernel has not taken as unread, and has the epoll tell when it takes more."""
        stream, backlog = peer.stream, peer.backlog
        if stream.unsent and (peer.large or backlog.unmarked):
            self._unread.add(backlog, Mark(Written(stream), peer.large, backlog.unmarked), time.monotonic())
        peer.large = backlog.unmarked = 0
        if stream.unsent != peer.watches_output and peer.name in self._peers:
            peer.watches_output = stream.unsent
            poll = self._poll
            assert poll is not None  # until `close`
            poll.modify(peer.descriptor, select.EPOLLIN | select.EPOLLOUT if stream.unsent else select.EPOLLIN)


def _discard(connection: socket.socket) -> bool:
    """Reads something from a connection; returns whether it has ended."""
    try:
        return not connection.recv(READ_BYTES, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True
