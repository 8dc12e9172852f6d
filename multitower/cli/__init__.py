"""The console script `multitower`. The commands themselves are in `commands`, each in a module of its own.

This module stays light: a spawned worker imports the main module of its parent again. It must also work where only
the client is installed, to say what is missing.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from typing import Final

from multitower.exits import Exit

# By the names that they are imported by.
_SERVER_PACKAGES: Final = frozenset(("click", "psutil", "pydantic", "pynvml", "rich", "ruamel"))


def main() -> None:
    """Runs the command that the arguments name, and ends the process with an exit code of `multitower.exits`."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: names of files may not be UTF-8
    try:
        code = _run()
        sys.stdout.flush()
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in _SERVER_PACKAGES:
            raise
        print(
            f"multitower: the package {error.name} is not installed. Applications need none of this; the command line "
            'needs\n\n    pip install "multitower[server]"\n',
            file=sys.stderr,
        )
        code = Exit.UNAVAILABLE
    except BrokenPipeError:
        # Whoever read the output has seen enough; at its exit Python would flush into the closed pipe once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code)


def _run() -> int:
    import click

    from multitower.cli.commands import multitower

    try:
        # Not standalone: click would print "Aborted!" for Ctrl-C, and give it another exit code than shells do.
        result = multitower.main(prog_name="multitower", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 128 + signal.SIGINT
    return result if isinstance(result, int) else Exit.OK
