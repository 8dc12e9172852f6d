"""A stand-in for a front socket: it returns one message of a client, and records the replies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from multitower import wire
from multitower.errors import MultitowerError
from multitower.supervisor.routing.front_socket import Incoming

ADDRESS = (b"\0\1\2\3\4",)


class FakeFront:
    """One client, `ADDRESS`, which has sent one message.

    Args:
        body: the frames of the message behind the delimiter; None for a message without one.
        local: whether the client may use shared memory.

    Attributes:
        replies: kind, id and body of each reply.
    """

    endpoint = "ipc:///fake"
    interface = "mt1"
    entrance = None

    def __init__(self, body: list[Any] | None, *, local: bool = True) -> None:
        self.local = local
        self.replies: list[tuple[bytes, bytes, list[bytes]]] = []
        self._incoming: Incoming | None = Incoming(ADDRESS, body)

    @property
    def readable(self) -> bool:
        return self._incoming is not None

    def receive(self) -> Incoming | None:
        incoming, self._incoming = self._incoming, None
        return incoming

    def reply(self, address: Sequence[bytes], kind: bytes, id: bytes, body: Sequence[Any]) -> bool:
        assert address == ADDRESS
        self.replies.append((kind, id, list(body)))
        return False

    def answer(
        self, address: Sequence[bytes], id: bytes, answer: Mapping[str, Any] | Sequence[bytes] | MultitowerError
    ) -> None:
        if isinstance(answer, MultitowerError):
            self.reply(address, wire.ERROR, id, (wire.dump_json(answer.to_wire()),))
        else:
            self.reply(address, wire.OK, id, (wire.dump_json(answer),) if isinstance(answer, Mapping) else answer)

    def recheck(self) -> None:
        """Nothing looks at this socket."""
