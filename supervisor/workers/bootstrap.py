"""The first code that runs in a spawned worker process; the supervisor imports it only to name its target.

It ties the process to its parent, sends its output to the parent's log, sets the device variables, and then imports
the worker's code by name, which the parent never imports.
"""

from __future__ import annotations

import ctypes
import faulthandler
import fcntl
import importlib
import os
import signal
import sys
import termios
import threading
import traceback
from multiprocessing.connection import Connection
from typing import TextIO

from multitower.import_path import restore_environment
from multitower.process_title import set_title
from multitower.spec import ProcessSpec
from multitower.standard_streams import open_standard_streams

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
IGNORED_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""A service manager may send them to all processes. Only the parent acts on them, and tells its workers to end."""

ORIGIN = "_MULTITOWER_ORIGIN"
"""The variable that shows which worker a process comes from: what identifies the daemon, a colon, and a process id."""

ORIGIN_PID = ":{:010}"
"""The end of its value: the process id of the worker, 0 in the daemon."""

STACKS_SIGNAL = signal.SIGQUIT
"""Makes a worker write its Python stacks to its output, even while native code holds the interpreter."""

ORPHANED = 70
"""The exit code of a worker whose parent has ended."""


def run_worker(spec_json: str, death: Connection, output: Connection, heartbeat: Connection, begun: Connection) -> None:
    """The target of every spawned process. Never returns.

    Args:
        spec_json: a `ProcessSpec`.
        death: the reading end of a pipe whose other end the parent holds open until it ends.
        output: the writing end of the pipe that carries this process's stdout and stderr to the log.
        heartbeat: the writing end of the pipe of its heartbeats.
        begun: a memory file with a `worker_wire.BEGUN` for each tower, and the `LoadStep` behind them.
    """
    open_standard_streams()
    # Whatever the worker starts is in this group, unless it makes its own. A session would do that as well, but Linux
    # schedules each session as one task beside the others (`autogroup` in sched(7)), at the cost of throughput.
    os.setpgid(0, 0)
    _leave_terminal()
    spec = ProcessSpec.from_json(spec_json)
    set_title("spare" if spec.assignment is None else spec.assignment.title)
    restore_environment()
    _set_origin()
    for number in IGNORED_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    # The parent blocks them while it spawns, so that none arrives before they are ignored.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, IGNORED_SIGNALS)
    _die_with_parent(spec, death)
    for descriptor in (1, 2):
        os.dup2(output.fileno(), descriptor)
    output.close()
    # A pipe is block-buffered by default, and a crash would lose the last lines.
    sys.stdout, sys.stderr = _line_buffered(1), _line_buffered(2)
    if spec.control_group is not None:
        _enter_control_group(spec.control_group)
    # A crash in native code shows the Python stacks, and so does a process that hangs, on request.
    faulthandler.enable(2)
    faulthandler.register(STACKS_SIGNAL, 2, chain=False)
    if spec.temporary_folder is not None:
        os.environ["TMPDIR"] = spec.temporary_folder
    # Before anything imports numpy: its libraries read the number of their threads once.
    os.environ.update(spec.environment if spec.assignment is None else spec.assignment.environment)
    code = 1
    try:
        code = importlib.import_module("multitower.worker.main").run(spec, heartbeat.fileno(), begun.fileno())
    except SystemExit as end:
        # Not a model's: the worker answers the request with `model_error`.
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001  it goes to the log, and the exit code tells
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # Not sys.exit: threads of a model or of TensorFlow must not keep the process running.
        os._exit(code)


def _enter_control_group(folder: str) -> None:
    """Enters the worker's control group; what it starts is in it as well."""
    try:
        with open(f"{folder}/cgroup.procs", "w") as file:
            file.write("0")
    except OSError as error:
        sys.stderr.write(f"the worker cannot enter its control group: {error}\n")


def _leave_terminal() -> None:
    """Gives up the controlling terminal: code that asks there, such as `getpass`, fails at once and is not stopped."""
    try:
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY)
    except OSError:
        return  # there is none
    try:
        fcntl.ioctl(terminal, termios.TIOCNOTTY)
    finally:
        os.close(terminal)


def _set_origin() -> None:
    """Puts this process's id into `ORIGIN`, for all that this process starts."""
    value = os.environ.get(ORIGIN, "")
    mine = value.removesuffix(ORIGIN_PID.format(0)) + ORIGIN_PID.format(os.getpid())
    if len(mine) != len(value):
        return  # the parent has not set it
    # /proc/PID/environ shows the memory where the environment was when the program started. Processes that are forked,
    # and start no program, have a copy of it.
    getenv = ctypes.CDLL(None).getenv
    getenv.restype = ctypes.c_void_p
    ctypes.memmove(getenv(ORIGIN.encode()), mine.encode(), len(mine))
    os.environ[ORIGIN] = mine


def _line_buffered(descriptor: int) -> TextIO:
    return open(descriptor, "w", buffering=1, errors="backslashreplace", closefd=False)


def _die_with_parent(spec: ProcessSpec, death: Connection) -> None:
    """Ends with the parent, by three means: a signal of the kernel, a check for a parent that has ended, a pipe."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    libc.prctl(_PR_SET_NAME, spec.name.encode()[:15], 0, 0, 0)
    if os.getppid() != spec.parent_pid:
        os._exit(ORPHANED)
    threading.Thread(target=_exit_with_parent, args=(death,), name="parent-death", daemon=True).start()


def _exit_with_parent(death: Connection) -> None:
    try:
        death.recv_bytes()
    except (EOFError, OSError):
        os._exit(ORPHANED)
