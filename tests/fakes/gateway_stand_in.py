"""A program that behaves towards the daemon as the gateway does, for tests of its supervision: it serves a few words.

It answers each connection with one line of JSON about itself, and does what the request says: `hang` answers when the
process is asked to end, `die CODE` exits, `write TEXT` and `record TEXT` write to stderr and stdout, `silent` stops its
reports.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
from pathlib import Path

VERSION = "0.1.0"


def write_program(path: Path, **constants: object) -> Path:
    """Writes the program to a file that can be run; constants replace those of this module."""
    changes = "".join(f"{name} = {value!r}\n" for name, value in constants.items())
    before, end, after = Path(__file__).read_text().rpartition("\nif __name__ ==")
    path.write_text(f"#!{sys.executable}\n{before}\n{changes}{end}{after}")
    path.chmod(0o755)
    return path


EXIT_CODE: int | None = None
READY = True
ENDS = True
ENDS_WITH_DAEMON = True


def report(**record: object) -> None:
    print(json.dumps(record), flush=True)


def log(event: str, level: str = "info", **fields: object) -> None:
    print(json.dumps({"level": level, "event": event, "fields": fields}), file=sys.stderr, flush=True)


class StandIn:
    def __init__(self, settings: dict[str, object]) -> None:
        self.settings = settings
        self.requests = 0
        self.silent = False
        self.stopping = False
        self.held: list[socket.socket] = []
        self.listening = [socket.socket(fileno=listener["fd"]) for listener in settings["listeners"]]  # type: ignore[index, attr-defined]
        self.wake_out, self.wake_in = socket.socketpair()
        self.wake_in.setblocking(False)
        signal.set_wakeup_fd(self.wake_in.fileno())
        signal.signal(signal.SIGTERM, lambda *_: None)

    def run(self) -> int:
        while True:
            stdin = [0] if ENDS_WITH_DAEMON else []
            ready, _, _ = select.select([*stdin, self.wake_out, *self.listening], [], [], 5.0)
            if 0 in ready and not os.read(0, 4096):
                return 0
            if self.wake_out in ready:
                self.wake_out.recv(64)
                if not ENDS:
                    continue
                self.stopping = True
                for held in self.held:
                    self.answer(held)
                self.count()
                return 0
            for listening in ready:
                if listening in self.listening:
                    self.accept(listening)
            self.count()

    def accept(self, listening: socket.socket) -> None:
        try:
            connection, _ = listening.accept()
        except BlockingIOError:
            return
        connection.setblocking(True)
        word, _, argument = connection.recv(4096).decode().strip().partition(" ")
        self.requests += 1
        if word == "hang":
            self.held.append(connection)
            return
        if word == "die":
            log("dying", "error", why="told to")
            os._exit(int(argument))
        if word == "write":
            print(argument, file=sys.stderr, flush=True)
        if word == "record":
            print(argument, flush=True)
        self.silent |= word == "silent"
        self.answer(connection)

    def answer(self, connection: socket.socket) -> None:
        about = {"pid": os.getpid(), "settings": self.settings, "group": os.getpgid(0), "stopping": self.stopping}
        connection.sendall(json.dumps(about).encode() + b"\n")
        connection.close()

    def count(self) -> None:
        if not self.silent:
            held = len(self.held)
            report(record="statistics", connections=held, requests=self.requests, errors=0, outstanding=held)


def main() -> int:
    if sys.argv[1:] == ["--version"]:
        print(f"multitower-gateway {VERSION}")
        return 0
    settings = json.loads(sys.stdin.buffer.raw.readline())  # type: ignore[attr-defined]
    if EXIT_CODE is not None:
        log("cannot start", "error")
        return EXIT_CODE
    stand_in = StandIn(settings)
    if READY:
        report(record="ready")
    log("listening", threads=settings["threads"])
    return stand_in.run()


if __name__ == "__main__":
    sys.exit(main())
