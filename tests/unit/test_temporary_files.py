"""The folders for temporary files of workers: private, removed with their process, and made again where removed."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import threading
from contextlib import closing
from pathlib import Path

import pytest
from waiting import wait_until

from multitower.supervisor.loop.runtime_dir import LOCK_NAME, FileLock, HeldError, RuntimeDir, remove_stale
from multitower.supervisor.workers import temporary_files
from multitower.supervisor.workers.temporary_files import TemporaryFolders


@pytest.fixture
def base(short_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(short_folder))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    return short_folder


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
        wait_until(lambda: not one.exists())
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
        wait_until(lambda: not other.exists())
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
        wait_until(lambda: not (base / "multitower-tmp-killed").exists())
        wait_until(lambda: names(base / "multitower-notes") == ["notes"])
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


def test_what_cannot_be_removed_in_time_is_removed_by_the_next_daemon(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_remove = threading.Event()
    remove = shutil.rmtree

    def remove_late(path: Path, ignore_errors: bool) -> None:
        may_remove.wait(60)
        remove(path, ignore_errors=ignore_errors)

    monkeypatch.setattr(temporary_files, "CLOSE_S", 0.01)
    folders = TemporaryFolders()
    path = made(folders, 1)
    with monkeypatch.context() as context:
        context.setattr(shutil, "rmtree", remove_late)
        folders.close()
        assert path.exists()
    remove_stale(base)
    may_remove.set()
    assert names(base) == []


def test_a_folder_that_a_sweep_cannot_remove_is_removed_by_the_next(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_daemon(base / "multitower-tmp-killed")
    with monkeypatch.context() as context:
        context.setattr(shutil, "rmtree", lambda *_, **__: None)
        remove_stale(base)
    assert (base / "multitower-tmp-killed" / "tmp-3").exists()
    remove_stale(base)
    assert names(base) == []


def test_a_folder_that_could_not_be_removed_is_removed_with_the_next(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = threading.Event()
    with closing(TemporaryFolders()) as folders:
        one, other = made(folders, 1), made(folders, 2)
        with monkeypatch.context() as context:
            context.setattr(shutil, "rmtree", lambda *_, **__: tried.set())
            folders.remove(one)
            assert tried.wait(60)
        assert one.exists()
        folders.remove(other)
        wait_until(lambda: not one.exists() and not other.exists())


def test_a_slow_sweep_of_old_folders_delays_no_removal(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    may_end = threading.Event()
    monkeypatch.setattr(temporary_files, "remove_stale", lambda _: may_end.wait(60))
    with closing(TemporaryFolders()) as folders:
        path = made(folders, 1)
        folders.remove(path)
        wait_until(lambda: not path.exists())
        may_end.set()


def fail_first_locks(monkeypatch: pytest.MonkeyPatch, error: Exception, times: int) -> None:
    """Makes the first locks fail, as when another daemon removes the folder at this moment."""
    make, left = FileLock.__init__, [error] * times

    def fail(self: FileLock, path: Path) -> None:
        if left:
            raise left.pop()
        make(self, path)

    monkeypatch.setattr(FileLock, "__init__", fail)


@pytest.mark.parametrize("error", [HeldError("held"), FileNotFoundError(errno.ENOENT, "gone")])
def test_a_new_folder_that_another_daemon_removes_at_once_is_replaced(
    base: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    with closing(TemporaryFolders()) as folders:
        fail_first_locks(monkeypatch, error, 1)
        assert made(folders, 1).is_dir()
        fail_first_locks(monkeypatch, error, 1)
        with closing(RuntimeDir(None)) as runtime_dir:
            assert runtime_dir.intact
    assert names(base) == []


def test_a_lock_that_failed_does_not_cost_later_workers_their_folders(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(TemporaryFolders()) as folders:
        fail_first_locks(monkeypatch, OSError(errno.ENOLCK, "No locks available"), 1)
        assert folders.make(1) is None
        one = made(folders, 2)
        shutil.rmtree(one.parent)
        fail_first_locks(monkeypatch, OSError(errno.ENOLCK, "No locks available"), 1)
        folders.keep()
        folders.keep()
        assert one.is_dir()
        assert made(folders, 3).parent == one.parent
    assert names(base) == []


@pytest.mark.parametrize("kind", ["open to all", "link", "file"])
def test_a_folder_that_somebody_put_in_place_of_the_former_is_not_used(base: Path, kind: str) -> None:
    with closing(TemporaryFolders()) as folders:
        one = made(folders, 1)
        shutil.rmtree(one.parent)
        (base / "theirs" / "tmp-1").mkdir(parents=True)
        if kind == "link":
            one.parent.symlink_to(base / "theirs")
        elif kind == "file":
            one.parent.touch()
        else:
            one.parent.mkdir()
            one.parent.chmod(0o777)
        assert made(folders, 2).parent != one.parent
        folders.remove(one)
    assert names(base) == sorted([one.parent.name, "theirs"])
    assert names(base / "theirs") == ["tmp-1"]


def test_times_of_folders_are_kept_young(base: Path) -> None:
    with closing(TemporaryFolders()) as folders:
        one = made(folders, 1)
        for path in (one, one.parent / LOCK_NAME, one.parent):
            os.utime(path, (0, 0))
        folders.keep()
        assert min(path.stat().st_mtime for path in (one, one.parent / LOCK_NAME, one.parent)) > 0
