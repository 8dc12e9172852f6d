"""What all commands share that ask a running daemon: its endpoint, a timeout, and how errors are printed."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from multitower.cli.seconds import Seconds
from multitower.exit_codes import Exit
from multitower.supervisor.loop.log import escape_controls

if TYPE_CHECKING:
    from multitower import MultitowerError

CONNECT_S: Final = 3.0
TIMEOUT_S: Final = 10.0
ORDER_TIMEOUT_S: Final = 3600.0
"""Seconds that an order may take: models are loaded slot by slot."""

RECORD_TIMEOUT_S: Final = 60.0
"""Seconds that `record` waits for requests."""

endpoint_option: Final = click.option(
    "--endpoint", help="The daemon's address.  [default: MULTITOWER_ENDPOINT, else tcp://127.0.0.1:5555]"
)


def key_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options `--key` and `--server-key`, for daemons with `security`."""
    key = click.option(
        "--key",
        metavar="FILE",
        type=click.Path(path_type=Path),
        help="File of the secret key, for a daemon with `security`, over tcp.  [default: MULTITOWER_KEY]",
    )
    server_key = click.option(
        "--server-key", metavar="KEY", help="The daemon's public key, or its file.  [default: MULTITOWER_SERVER_KEY]"
    )
    return key(server_key(command))


def asks_daemon(command: Callable[..., int]) -> Callable[..., None]:
    """Makes a command of a function that takes a connected `Client` and returns an exit code; see `_make_command`."""
    return _make_command(command, TIMEOUT_S)


def orders_daemon(command: Callable[..., int]) -> Callable[..., None]:
    """As `asks_daemon`, for an order: it takes as long as models load."""
    help_text = (
        "Seconds to wait until the order is carried out. Reading the files must end within it, if it is given; after "
        "that the daemon goes on with the order."
    )
    return _make_command(command, ORDER_TIMEOUT_S, help_text)


def awaits_requests(command: Callable[..., int]) -> Callable[..., None]:
    """As `asks_daemon`, for a command that waits until clients have sent requests."""
    return _make_command(
        command, RECORD_TIMEOUT_S, "Seconds to wait for requests; after that, the requests recorded so far are written."
    )


def _make_command(
    command: Callable[..., int], default_s: float, timeout_help: str = "Seconds to wait for an answer."
) -> Callable[..., None]:
    """Makes a command of a function.

    The command gets the options `--endpoint`, `--key`, `--server-key` and `--timeout`. An error becomes text on stderr,
    see `error_text`, and an exit code: `UNAVAILABLE` if no daemon or model could answer, `NO_PERMISSION` if the daemon
    refuses it to this user, 1 otherwise.
    """

    @endpoint_option
    @key_options
    @click.option(
        "--timeout",
        type=Seconds(0, min_open=True),
        default=default_s,
        show_default=True,
        help=timeout_help,
    )
    @functools.wraps(command)
    def run(endpoint: str | None, key: Path | None, server_key: str | None, timeout: float, **arguments: Any) -> None:
        from multitower import Client, MultitowerError
        from multitower.tools.tensor_files import TensorFileError

        code: int
        try:
            with Client(
                endpoint,
                timeout=timeout,
                connect_timeout=min(timeout, CONNECT_S),
                key=key,
                server_key=server_key,
            ) as client:
                code = command(client, **arguments)
        except MultitowerError as error:
            click.echo(error_text(error), err=True)
            code = exit_code(error)
        except TensorFileError as error:
            click.echo(error_line(error), err=True)
            code = 1
        sys.exit(code)

    return run


def error_line(error: Exception) -> str:
    """An error in one line."""
    return f"multitower: {_one_line(str(error))}"


def error_text(error: MultitowerError) -> str:
    """An error for stderr: one line, but of a configuration that is refused each mistake has its own, as in `check`."""
    from multitower import Reason

    if error.reason != Reason.CONFIG_REFUSED:
        return error_line(error)
    first, *mistakes = str(error).splitlines()
    return "\n".join([f"multitower: {_one_line(first)}", *map(_one_line, mistakes)])


def _one_line(text: str) -> str:
    return escape_controls(" ".join(text.split()))


def exit_code(error: Exception) -> int:
    """The exit code for an error of a request."""
    from multitower import Forbidden, Unauthenticated, Unavailable

    if isinstance(error, Forbidden | Unauthenticated):
        return Exit.NO_PERMISSION
    return Exit.UNAVAILABLE if isinstance(error, Unavailable) else 1
