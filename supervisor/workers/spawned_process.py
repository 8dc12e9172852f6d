"""A spawned process whose end only `join` collects.

`multiprocessing` reaps children that have ended whenever it starts another one. The system may then give the process id
to an unrelated process, and with it the number of a process group that is to be killed.

The spawned process imports this module, too.
"""

from __future__ import annotations

import os
from multiprocessing.context import SpawnProcess
from multiprocessing.popen_spawn_posix import Popen
from multiprocessing.process import BaseProcess

from multitower.import_path import without_working_directory


class SpawnedProcess(SpawnProcess):
    """Like `multiprocessing.get_context("spawn").Process`, but it stays unreaped until `join` is called."""

    @staticmethod
    def _Popen(process_obj: BaseProcess) -> Popen:  # noqa: N802  the name is Python's
        with without_working_directory():
            return _Unreaped(process_obj)


class _Unreaped(Popen):
    def poll(self, flag: int = os.WNOHANG) -> int | None:
        """Returns the exit code; None before `join`, which calls this with 0."""
        return self.returncode if flag == os.WNOHANG else super().poll(flag)
