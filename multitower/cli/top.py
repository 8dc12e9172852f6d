"""`multitower top`: slots, models and events of a running daemon, live in the terminal."""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from multitower.cli.connection import asks_daemon
from multitower.cli.seconds import Seconds
from multitower.cli.tables import print_lines, shows_colour, terminal_width
from multitower.cli.terminal import Terminal, end_by_signal, obstacle, shows_unicode
from multitower.cli.top_keys import Screen, press
from multitower.cli.top_tables import Look
from multitower.cli.top_view import once_lines, top_frame
from multitower.cli.trends import Trends, start_of
from multitower.cli.watch import Answer, ask, frame
from multitower.exit_codes import Exit

if TYPE_CHECKING:
    from multitower import Client

INTERVAL_S: Final = 1.0
"""Seconds from one look at the daemon to the next by default."""

MIN_INTERVAL_S: Final = 0.1
MAX_INTERVAL_S: Final = 3600.0

ESCAPE_S: Final = 0.05
"""Seconds within which the rest of a key's sequence arrives; without it, the key is Escape."""

LATE_S: Final = 2.0
"""Seconds that an answer may take until the daemon counts as away; whether it answers later is found out meanwhile."""

CLOCK_S: Final = 1.0
"""Seconds after which a frame is drawn again although nothing has happened: the clock goes on."""

KEPT_EVENTS: Final = 200
"""Events that are kept, the latest ones: as many as a daemon keeps."""


class EventLog:
    """The events that are known, from answers that have only the latest ones.

    Attributes:
        events: oldest first.
        incomplete: events are missing between those that are known: ask for all.
    """

    def __init__(self) -> None:
        self.events: list[Mapping[str, Any]] = []
        self.incomplete = True
        self._start: str | int | None = None

    def add(self, daemon: Mapping[str, Any], *, all_events: bool) -> None:
        """Adds the events of a status.

        Args:
            daemon: its part about the daemon.
            all_events: whether it has all that the daemon keeps.
        """
        came: Sequence[Mapping[str, Any]] = daemon["events"]
        # An older daemon does not number its events.
        numbered = all("seq" in each for each in came)
        if all_events or not numbered or start_of(daemon) != self._start:
            self.events, self.incomplete = list(came), not all_events and numbered
            self._start = start_of(daemon)
            return
        last = self.events[-1]["seq"] if self.events else 0
        new = [each for each in came if each["seq"] > last]
        if new and len(new) < came[-1]["seq"] - last:
            self.incomplete = True
        self.events = [*self.events, *new][-KEPT_EVENTS:]


class Knowledge:
    """What is known of the daemon, from the answers so far.

    Args:
        interval_s: seconds from one answer to the next.
        unicode: whether the terminal shows block characters and arrows.
    """

    def __init__(self, interval_s: float, *, unicode: bool) -> None:
        self.log = EventLog()
        self._unicode = unicode
        self._late_s = interval_s + LATE_S
        self._trends = Trends()
        self._status: dict[str, Any] | None = None
        self._error: str | None = None
        self._answered_at = time.monotonic()

    def add(self, answer: Answer) -> None:
        """Adds an answer, or that there was none."""
        self._error = answer.error
        if answer.status is not None:
            self._status, self._answered_at = answer.status, time.monotonic()
            self.log.add(answer.status["daemon"], all_events=answer.all_events)
            self._trends.add(answer.status)

    def look(self) -> Look:
        """Returns what is known now."""
        silent_s = time.monotonic() - self._answered_at
        away_s = silent_s if self._error is not None or silent_s > self._late_s else None
        clock = time.strftime("%H:%M:%S")
        return Look(self._status, self._trends, self.log.events, clock, away_s, self._error, self._unicode)


class Poller:
    """Asks the daemon for its status again and again, in a thread, so that keys are handled while it does not answer.

    Args:
        client: of the daemon; it connects again by itself.
        interval_s: seconds from one look to the next.
        wake: is called after each answer.

    Attributes:
        answers: that nobody has taken yet; an exception that is no answer of a daemon ends the thread.
        all_events: ask for all events.
    """

    def __init__(self, client: Client, interval_s: float, wake: Callable[[], None]) -> None:
        self.answers: queue.SimpleQueue[Answer | Exception] = queue.SimpleQueue()
        self.all_events = True
        self._client = client
        self._interval_s = interval_s
        self._wake = wake
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="poller", daemon=True)

    def start(self) -> None:
        """Begins to ask."""
        self._thread.start()

    def end(self) -> None:
        """Asks no more; does not wait for an answer."""
        self._ended.set()

    def _run(self) -> None:
        while not self._ended.is_set():
            began_at = time.monotonic()
            try:
                self.answers.put(ask(self._client, all_events=self.all_events))
            except Exception as error:  # noqa: BLE001  it is raised where the answer is taken
                self.answers.put(error)
                self._ended.set()
            self._wake()
            self._ended.wait(max(0.0, began_at + self._interval_s - time.monotonic()))


@click.command()
@click.option(
    "--interval",
    type=Seconds(MIN_INTERVAL_S, MAX_INTERVAL_S),
    default=INTERVAL_S,
    show_default=True,
    help="Seconds from one look at the daemon to the next.",
)
@click.option("--once", is_flag=True, help="Print one frame after two looks, and end: for scripts and pipes.")
@asks_daemon
def top(client: Client, interval: float, once: bool) -> int:
    """Show slots, models and events live, with keys to sort and to choose.

    Press `?` for the keys, and `q` to quit. It goes on while the daemon is restarted. Where the output is no terminal,
    only --once works.

    Exit codes: 0 when q or Ctrl-C ends it, and after --once; 2 without a terminal; 69 when no daemon answers --once.
    """
    knowledge = Knowledge(interval, unicode=shows_unicode(os.environ))
    if once:
        return _print_once(client, interval, knowledge)
    cause = obstacle(os.environ)
    if cause is not None:
        click.echo(f"multitower: {cause}; `multitower top --once` prints one frame", err=True)
        return Exit.USAGE
    with Terminal() as terminal:
        poller = Poller(client, interval, terminal.wake)
        poller.start()
        try:
            _run(terminal, poller, knowledge)
        finally:
            poller.end()
    if terminal.ended_by not in (None, signal.SIGINT):
        end_by_signal(terminal.ended_by)
    return Exit.OK


def _run(terminal: Terminal, poller: Poller, knowledge: Knowledge) -> None:
    """Draws frames and handles keys until the command is to end."""
    screen = Screen()
    colour = shows_colour(sys.stdout)
    while not screen.quit and terminal.ended_by is None:
        while not poller.answers.empty():
            answer = poller.answers.get()
            if isinstance(answer, Exception):
                raise answer
            knowledge.add(answer)
        poller.all_events = knowledge.log.incomplete
        size = terminal.size
        # The last row stays empty, for the cursor.
        lines, shown = top_frame(knowledge.look(), screen, size.columns, max(1, size.lines - 1))
        terminal.write(frame(lines, size, colour=colour))
        for key in terminal.wait(ESCAPE_S if terminal.waits_for_more else CLOCK_S):
            screen = press(screen, key, shown)


def _print_once(client: Client, interval_s: float, knowledge: Knowledge) -> int:
    """Prints a frame; rates are those between two looks.

    Raises:
        MultitowerError: the daemon does not answer.
    """
    for wait_s in (interval_s, 0.0):
        knowledge.add(Answer(client.status(events=True), None, all_events=True))
        time.sleep(wait_s)
    print_lines(once_lines(knowledge.look(), terminal_width()))
    return Exit.OK
