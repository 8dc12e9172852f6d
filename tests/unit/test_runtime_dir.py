"""The daemon's private folder and its locks: nothing that is not the daemon's own is changed, removed or followed."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from multitower.supervisor.loop.runtime_dir import (
    LOCK_NAME,
    LONGEST_NAME,
    MAX_IPC_PATH,
    SUBFOLDER,
    FileLock,
    HeldError,
    RuntimeDir,
    remove_stale,
    temporary_base,
)


@pytest.fixture(autouse=True)
def _no_systemd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)


@pytest.fixture
def base() -> Iterator[Path]:
    """A folder with a short path: those of sockets are limited."""
    with tempfile.TemporaryDirectory(prefix="mt-") as folder:
        yield Path(folder)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def killed_daemon(folder: Path) -> None:
    """What a daemon leaves behind when it is killed."""
    folder.mkdir(mode=0o700)
    for name in (LOCK_NAME, "w1.sock", "w23.sock", "control.sock", "control.sock.lock"):
        (folder / name).touch()


def test_a_new_folder_is_made_private_and_emptied_at_the_end(base: Path) -> None:
    with closing(RuntimeDir(base / "a" / "b")) as runtime:
        assert runtime.path == base / "a" / "b"
        assert mode(runtime.path) == 0o700
        runtime.worker_socket(7).touch()
    assert names(base / "a" / "b") == []


@pytest.mark.parametrize("shared", [0o1777, 0o755, 0o750])
def test_a_shared_folder_keeps_its_mode_and_its_files(base: Path, shared: int) -> None:
    for name in ("w1.sock", "window.sock", "front.sock", LOCK_NAME):
        (base / name).touch()
    base.chmod(shared)
    with closing(RuntimeDir(base)) as runtime:
        assert runtime.path == base / SUBFOLDER
        assert mode(runtime.path) == 0o700
        assert runtime.control_socket.parent == runtime.worker_socket(1).parent == runtime.path
    assert mode(base) == shared
    assert names(base) == sorted(["w1.sock", "window.sock", "front.sock", LOCK_NAME, SUBFOLDER])


def test_an_empty_folder_with_another_mode_keeps_it(base: Path) -> None:
    base.chmod(0o755)
    with closing(RuntimeDir(base)) as runtime:
        assert runtime.path == base / SUBFOLDER
    assert mode(base) == 0o755


def test_a_private_folder_with_files_of_others_is_not_taken_over(base: Path) -> None:
    (base / "w1.sock").touch()
    with closing(RuntimeDir(base)) as runtime:
        assert runtime.path == base / SUBFOLDER
    assert names(base) == [SUBFOLDER, "w1.sock"]


def test_the_folder_of_a_killed_daemon_is_used_again(base: Path) -> None:
    killed_daemon(base / "run")
    for name in ("window.sock", "w.sock", "notes"):
        (base / "run" / name).touch()
    with closing(RuntimeDir(base / "run")) as runtime:
        assert runtime.path == base / "run"
        assert names(runtime.path) == sorted([LOCK_NAME, "notes", "w.sock", "window.sock"]), "only its own are removed"


def test_a_folder_that_inherits_its_group_is_private_all_the_same(base: Path) -> None:
    base.chmod(0o2755)
    for _ in range(2):
        with closing(RuntimeDir(base / "run")) as runtime:
            assert runtime.path == base / "run"


def test_the_folder_of_a_running_daemon_is_refused(base: Path) -> None:
    base.chmod(0o755)
    for folder in (base / "run", base):
        with closing(RuntimeDir(folder)) as runtime, pytest.raises(HeldError, match=str(runtime.path)):
            RuntimeDir(folder)


def test_a_symbolic_link_is_not_followed(base: Path) -> None:
    (base / "real").mkdir(mode=0o700)
    (base / "link").symlink_to(base / "real")
    with pytest.raises(OSError, match="link is a symbolic link"):
        RuntimeDir(base / "link")
    (base / SUBFOLDER).symlink_to(base / "real")
    with pytest.raises(OSError, match=f"{SUBFOLDER} is a symbolic link"):
        RuntimeDir(base)
    assert names(base / "real") == []


def test_a_subfolder_that_is_not_the_daemons_is_refused(base: Path) -> None:
    (base / SUBFOLDER).mkdir(mode=0o755)
    with pytest.raises(OSError, match="has mode 755, not 700; set runtime_dir"):
        RuntimeDir(base)
    (base / SUBFOLDER).chmod(0o700)
    (base / SUBFOLDER / "w1.sock").touch()
    with pytest.raises(OSError, match="holds files that are not the daemon's"):
        RuntimeDir(base)
    assert names(base / SUBFOLDER) == ["w1.sock"]


def test_a_subfolder_of_another_user_is_refused(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (base / SUBFOLDER).mkdir(mode=0o700)
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    with pytest.raises(OSError, match=f"{SUBFOLDER} belongs to another user"):
        RuntimeDir(base)


def test_systemds_folder_keeps_its_mode_and_the_front_socket(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base.chmod(0o750)
    (base / "front.sock").touch()
    monkeypatch.setenv("RUNTIME_DIRECTORY", f"{base}:/elsewhere")
    with closing(RuntimeDir(None)) as runtime:
        assert runtime.path == base / SUBFOLDER
    assert mode(base) == 0o750
    assert names(base) == ["front.sock", SUBFOLDER]


def test_without_a_configured_folder_a_new_one_is_made_and_removed(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(base))
    with closing(RuntimeDir(None)) as one, closing(RuntimeDir(None)) as other:
        assert one.path != other.path
        assert one.path.parent == other.path.parent == base
        assert mode(one.path) == 0o700
        one.worker_socket(1).touch()
    assert names(base) == []


def test_only_folders_of_killed_daemons_are_cleared_away(base: Path) -> None:
    killed_daemon(base / "multitower-killed")
    for name, permissions in (("multitower-src", 0o755), ("multitower-mine", 0o700)):
        (base / name).mkdir(mode=permissions)
        (base / name / "lock").touch()
        (base / name / "w1.sock").touch()
    (base / "multitower-link").symlink_to(base / "multitower-mine")
    killed_daemon(base / "multitower-used")
    (base / "multitower-used" / "notes").touch()
    remove_stale(base)
    assert names(base) == ["multitower-link", "multitower-mine", "multitower-src", "multitower-used"]
    assert names(base / "multitower-mine") == names(base / "multitower-src") == ["lock", "w1.sock"]
    assert names(base / "multitower-used") == ["notes"]


def test_a_path_that_is_too_long_for_sockets_makes_nothing(base: Path) -> None:
    folder = base / ("x" * (MAX_IPC_PATH - len(f"{base}/") - len(LONGEST_NAME)))
    with pytest.raises(OSError, match="is too long for sockets"):
        RuntimeDir(folder)
    assert names(base) == []


def test_a_lock_file_that_is_a_link_is_refused(base: Path) -> None:
    (base / "theirs").write_text("theirs")
    (base / "lock").symlink_to(base / "theirs")
    with pytest.raises(OSError, match="is a symbolic link"):
        FileLock(base / "lock")
    (base / "lock").unlink()
    (base / "lock").symlink_to(base / "new")
    with pytest.raises(OSError, match="is a symbolic link"):
        FileLock(base / "lock")
    assert not (base / "new").exists()
    assert (base / "theirs").read_text() == "theirs"


def test_a_lock_file_that_is_a_pipe_is_refused(base: Path) -> None:
    os.mkfifo(base / "lock")
    with pytest.raises(OSError, match="is no regular file"):
        FileLock(base / "lock")


def test_a_lock_is_exclusive_and_removed_with_its_release(base: Path) -> None:
    lock = FileLock(base / "lock")
    with pytest.raises(HeldError, match="held by another process"):
        FileLock(base / "lock")
    lock.release()
    assert names(base) == []


def test_a_lock_file_of_somebody_else_is_not_removed(base: Path) -> None:
    lost = FileLock(base / "lock")
    (base / "lock").unlink()
    holder = FileLock(base / "lock")
    lost.release()
    with pytest.raises(HeldError):
        FileLock(base / "lock")
    holder.release()


def test_a_removed_folder_is_made_again_and_locked(base: Path) -> None:
    with closing(RuntimeDir(base / "run")) as runtime:
        assert not runtime.restore()
        shutil.rmtree(runtime.path)
        assert not runtime.intact
        assert runtime.restore()
        assert (runtime.path, mode(runtime.path)) == (base / "run", 0o700)
        assert runtime.intact
        with pytest.raises(HeldError):
            RuntimeDir(base / "run")
    assert names(base / "run") == []


def test_a_removed_lock_is_made_again_and_the_sockets_stay(base: Path) -> None:
    with closing(RuntimeDir(base / "run")) as runtime:
        runtime.worker_socket(1).touch()
        (runtime.path / LOCK_NAME).unlink()
        assert runtime.restore()
        assert names(runtime.path) == [LOCK_NAME, "w1.sock"]
        assert runtime.path == base / "run"
        with pytest.raises(HeldError):
            RuntimeDir(base / "run")


@pytest.mark.parametrize(
    ("lock_only", "message"),
    [(False, "runtime folder was removed"), (True, "lock of the runtime folder was removed")],
    ids=["the folder", "its lock"],
)
def test_the_log_tells_what_was_removed(
    base: Path, caplog: pytest.LogCaptureFixture, lock_only: bool, message: str
) -> None:
    with closing(RuntimeDir(base / "run")) as runtime:
        if lock_only:
            (runtime.path / LOCK_NAME).unlink()
        else:
            shutil.rmtree(runtime.path)
        assert runtime.restore()
    assert [record.getMessage() for record in caplog.records] == [f"{message}: it is made again"]


@pytest.mark.parametrize("replaced_by", ["a file", "another daemon", "a shared folder"])
def test_a_folder_that_cannot_be_made_again_is_replaced_by_a_temporary_one(
    base: Path, monkeypatch: pytest.MonkeyPatch, replaced_by: str
) -> None:
    (base / "xdg").mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(base / "xdg"))
    runtime = RuntimeDir(base / "run")
    shutil.rmtree(base / "run")
    other = None
    if replaced_by == "a file":
        (base / "run").touch()
    elif replaced_by == "another daemon":
        other = RuntimeDir(base / "run")
    else:
        (base / "run").mkdir(mode=0o755)
    assert runtime.restore()
    assert runtime.path.parent == base / "xdg"
    assert runtime.intact
    runtime.close()
    assert names(base / "xdg") == []
    if other is not None:
        assert other.intact, "the other daemon's folder stays as it is"
        other.close()


def test_the_temporary_folder_moves_when_the_folder_above_it_is_removed(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("xdg", "tmp"):
        (base / name).mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(base / "xdg"))
    monkeypatch.setattr(tempfile, "tempdir", str(base / "tmp"))
    with closing(RuntimeDir(None)) as runtime:
        assert runtime.path.parent == base / "xdg"
        shutil.rmtree(base / "xdg")  # as at a logout
        assert runtime.restore()
        assert runtime.path.parent == base / "tmp"
    assert names(base / "tmp") == []


def test_without_a_usable_xdg_runtime_dir_the_temporary_folder_is_used(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(base))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    assert temporary_base() == (base, None)
    (base / "xdg").mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(base / "xdg"))
    assert temporary_base() == (base / "xdg", None)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(base / "absent"))
    folder, refused = temporary_base()
    assert folder == base
    assert refused == f"{base / 'absent'} cannot be used: No such file or directory"


def test_the_xdg_runtime_dir_of_another_user_is_not_used_and_a_line_says_so(
    base: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (base / "xdg").mkdir(mode=0o700)
    (base / "tmp").mkdir(mode=0o700)
    monkeypatch.setattr(tempfile, "tempdir", str(base / "tmp"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(base / "xdg"))
    status = (base / "xdg").stat()
    if os.geteuid() == 0:
        os.chown(base / "xdg", 4711, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: status.st_uid + 1)
    folder, refused = temporary_base()
    assert folder == base / "tmp"
    assert refused is not None
    assert "is no folder that belongs to this user" in refused
    if os.geteuid() == 0:
        with closing(RuntimeDir(None)) as runtime:
            assert runtime.path.parent == base / "tmp"
        assert "XDG_RUNTIME_DIR is not used" in caplog.text


def test_programs_that_remove_old_files_find_the_folder_locked(base: Path) -> None:
    with closing(RuntimeDir(base / "run")) as runtime:
        descriptor = os.open(runtime.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with pytest.raises(BlockingIOError):  # as systemd-tmpfiles tries it
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(descriptor)
        for path in (runtime.path, runtime.path / LOCK_NAME):
            os.utime(path, (0, 0))
        runtime.touch()
        for path in (runtime.path, runtime.path / LOCK_NAME):
            assert path.stat().st_mtime > time.time() - 60
