"""The console script `multitower`. `commands` lists the commands, each of which has its own module.

This module imports little, because a spawned worker imports the main module of its parent again. It also has to work
where only the client is installed, to say what is missing.
"""

from __future__ import annotations

import errno
import gc
import io
import signal
import sys
from typing import Final

from multitower.early_signals import die_of_ctrl_c, handle_early_stop, raise_on_ctrl_c
from multitower.exit_codes import Exit
from multitower.standard_streams import discard_output, open_standard_streams
from multitower.temporary_folder import NoTemporaryFolderError

SERVER_PACKAGES: Final = {
    "click": "click",
    "prometheus_client": "prometheus-client",
    "psutil": "psutil",
    "pydantic": "pydantic",
    "pynvml": "nvidia-ml-py",
    "rich": "rich",
    "ruamel": "ruamel.yaml",
    "setproctitle": "setproctitle",
}
"""The packages that the command line needs beyond the client's: the name in imports, and the name for pip."""


LOST_OUTPUT: Final = frozenset((errno.EPIPE, errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
"""Errors of a write to standard output that are no defect."""

GC_THRESHOLD: Final = 100_000
"""For gc.set_threshold: more objects than the imports of most commands make. All of them stay."""


def main() -> None:
    """Runs the command line and ends the process with an exit code of `multitower.exit_codes`."""
    # By default, imports start 80 garbage collections and more, which find nothing.
    gc.set_threshold(GC_THRESHOLD)
    die_of_ctrl_c()
    open_standard_streams()
    handle_early_stop()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Whatever the locale is: JSON is UTF-8. File names may be neither.
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        code = _run()
        sys.stdout.flush()
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in SERVER_PACKAGES:
            raise
        print(
            f"multitower: the package {error.name} is not installed. Applications need only the client; the command "
            f"line needs\n\n    pip install {' '.join(SERVER_PACKAGES.values())}\n",
            file=sys.stderr,
        )
        code = Exit.UNAVAILABLE
    except NoTemporaryFolderError as error:
        print(f"multitower: {error}", file=sys.stderr)
        code = Exit.TEMPORARY
    except OSError as error:
        if error.errno not in LOST_OUTPUT or error.filename is not None:
            raise
        discard_output()
        # The reader has closed the pipe, or the terminal has been closed: no message is needed.
        if error.errno not in (errno.EPIPE, errno.EIO):
            print(f"multitower: the output could not be written: {error.strerror}", file=sys.stderr)
        code = 1
    sys.exit(code)


def _run() -> int:
    import click

    from multitower.cli.commands import multitower

    raise_on_ctrl_c()
    try:
        # Not standalone: click would print "Aborted!" for Ctrl-C, and use another exit code than shells do.
        result = multitower.main(prog_name="multitower", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 128 + signal.SIGINT
    finally:
        die_of_ctrl_c()  # what is left is the end of the interpreter
    return result if isinstance(result, int) else Exit.OK
