"""The folders for temporary files of workers: private, removed with their process, and made again where removed."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from multitower.supervisor.loop.runtime_dir import LOCK_NAME, remove_stale
from multitower.supervisor.workers.temporary_files import TemporaryFolders


@pytest.fixture
def base(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mt-") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
        yield Path(folder)


def wait(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def made(folders: TemporaryFolders, serial: int) -> Path:
    path = folders.make(serial)
    assert path is not None
    return path


def test_a_folder_is_private_and_removed_with_all_that_is_in_it(base: Path) -> None:
    with closing(TemporaryFolders()) as folders:
        one, other = made(folders, 1), made(folders, 2)
        assert one.parent == other.parent
        assert one.parent.parent == base
        assert [path.stat().st_mode & 0o777 for path in (one.parent, one, other)] == [0o700] * 3
        (one / "deep" / "er").mkdir(parents=True)
        (one / "deep" / "er" / "file").touch()
        folders.remove(one)
        wait(lambda: not one.exists())
        assert other.exists()
    assert names(base) == []


def test_no_link_in_a_folder_is_followed(base: Path) -> None:
    (base / "theirs").mkdir()
    (base / "theirs" / "file").touch()
    with closing(TemporaryFolders()) as folders:
        (made(folders, 1) / "link").symlink_to(base / "theirs")
    assert names(base) == ["theirs"]
    assert names(base / "theirs") == ["file"]


def test_folders_that_somebody_removed_are_made_again_for_their_processes(base: Path) -> None:
    with closing(TemporaryFolders()) as folders:
        one, other = made(folders, 1), made(folders, 2)
        folders.remove(other)
        wait(lambda: not other.exists())
        shutil.rmtree(one.parent)
        folders.keep()
        assert one.is_dir()
        assert not other.exists()
        remove_stale(base)
        assert one.is_dir(), "it is locked"
    assert names(base) == []


def test_where_no_folder_can_be_made_there_is_none_and_one_line_says_so(
    base: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with closing(TemporaryFolders()) as folders:
        one = made(folders, 1)
        with monkeypatch.context() as context:
            context.setattr(Path, "mkdir", fail)
            assert [folders.make(2), folders.make(3)] == [None, None]
            folders.keep()
        assert made(folders, 4).parent == one.parent, "once there is space"
    assert caplog.text.count("workers get no private folders for temporary files") == 1
    assert names(base) == []


def killed_daemon(folder: Path) -> None:
    """What a daemon leaves behind when it is killed."""
    (folder / "tmp-3" / "deep").mkdir(parents=True)
    folder.chmod(0o700)
    (folder / "tmp-3" / "deep" / "file").touch()
    (folder / LOCK_NAME).touch()


def test_what_killed_daemons_left_is_removed_at_the_start_and_nothing_else(base: Path) -> None:
    killed_daemon(base / "multitower-tmp-killed")
    killed_daemon(base / "multitower-shared")
    (base / "multitower-shared").chmod(0o755)
    killed_daemon(base / "multitower-notes")
    (base / "multitower-notes" / "notes").touch()
    (base / "multitower-unlocked" / "tmp-1").mkdir(parents=True)
    with closing(TemporaryFolders()):
        wait(lambda: not (base / "multitower-tmp-killed").exists())
        wait(lambda: names(base / "multitower-notes") == ["notes"])
    assert names(base) == ["multitower-notes", "multitower-shared", "multitower-unlocked"]
    assert (base / "multitower-shared" / "tmp-3" / "deep" / "file").exists()


def test_files_that_are_still_being_written_are_removed_in_the_end(base: Path) -> None:
    stop = threading.Event()
    with closing(TemporaryFolders()) as folders:
        path = made(folders, 1)
        (path / "sub").mkdir()

        def write() -> None:
            for number in range(1_000_000):
                if stop.is_set():
                    return
                try:
                    descriptor = os.open(path / "sub" / str(number), os.O_CREAT | os.O_WRONLY)
                except FileNotFoundError:
                    return
                os.close(descriptor)

        writer = threading.Thread(target=write)
        writer.start()
        folders.remove(path)
        stop.set()
        writer.join(30)
    assert names(base) == []
