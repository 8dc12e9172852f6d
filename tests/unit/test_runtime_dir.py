"""The daemon's private folder and its locks: nothing that is not the daemon's own is changed, removed or followed."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
import time
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
    RuntimeDirError,
    remove_stale,
    temporary_base,
)


@pytest.fixture(autouse=True)
def _no_systemd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def killed_daemon(folder: Path) -> None:
    """What a daemon leaves behind when it is killed."""
    folder.mkdir(mode=0o700)
    for name in (LOCK_NAME, "w1.sock", "w23.sock", "control.sock", "control.sock.lock"):
        (folder / name).touch()


def test_a_new_folder_is_made_private_and_emptied_at_the_end(short_folder: Path) -> None:
    with closing(RuntimeDir(short_folder / "a" / "b")) as runtime:
        assert runtime.path == short_folder / "a" / "b"
        assert mode(runtime.path) == 0o700
        runtime.worker_socket(7).touch()
    assert names(short_folder / "a" / "b") == []


@pytest.mark.parametrize(
    ("configured", "systemd", "setting"),
    [
        ("/dev/null/run", "", "runtime_dir"),
        ("/dev/null/run", "/dev/null/unit", "runtime_dir"),
        (None, "/dev/null/unit", "RuntimeDirectory of the systemd unit, or set runtime_dir"),
    ],
)
def test_an_error_of_the_system_names_the_folder_and_the_setting(
    configured: str | None, systemd: str, setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", systemd)
    with pytest.raises(RuntimeDirError) as caught:
        RuntimeDir(Path(configured) if configured else None)
    path = configured or systemd
    assert str(caught.value) == f"{path} cannot be made or used: Not a directory; see {setting}"
    assert caught.value.errno == errno.ENOTDIR


@pytest.mark.parametrize("shared", [0o1777, 0o755, 0o750])
def test_a_shared_folder_keeps_its_mode_and_its_files(short_folder: Path, shared: int) -> None:
    for name in ("w1.sock", "window.sock", "front.sock", LOCK_NAME):
        (short_folder / name).touch()
    short_folder.chmod(shared)
    with closing(RuntimeDir(short_folder)) as runtime:
        assert runtime.path == short_folder / SUBFOLDER
        assert mode(runtime.path) == 0o700
        assert runtime.control_socket.parent == runtime.worker_socket(1).parent == runtime.path
    assert mode(short_folder) == shared
    assert names(short_folder) == sorted(["w1.sock", "window.sock", "front.sock", LOCK_NAME, SUBFOLDER])


def test_an_empty_folder_with_another_mode_keeps_it(short_folder: Path) -> None:
    short_folder.chmod(0o755)
    with closing(RuntimeDir(short_folder)) as runtime:
        assert runtime.path == short_folder / SUBFOLDER
    assert mode(short_folder) == 0o755


def test_a_private_folder_with_files_of_others_is_not_taken_over(short_folder: Path) -> None:
    (short_folder / "w1.sock").touch()
    with closing(RuntimeDir(short_folder)) as runtime:
        assert runtime.path == short_folder / SUBFOLDER
    assert names(short_folder) == [SUBFOLDER, "w1.sock"]


def test_the_folder_of_a_killed_daemon_is_used_again(short_folder: Path) -> None:
    killed_daemon(short_folder / "run")
    for name in ("window.sock", "w.sock", "notes"):
        (short_folder / "run" / name).touch()
    with closing(RuntimeDir(short_folder / "run")) as runtime:
        assert runtime.path == short_folder / "run"
        assert names(runtime.path) == sorted([LOCK_NAME, "notes", "w.sock", "window.sock"]), "only its own are removed"


def test_a_folder_that_inherits_its_group_is_private_all_the_same(short_folder: Path) -> None:
    short_folder.chmod(0o2755)
    for _ in range(2):
        with closing(RuntimeDir(short_folder / "run")) as runtime:
            assert runtime.path == short_folder / "run"


def test_the_folder_of_a_running_daemon_is_refused(short_folder: Path) -> None:
    short_folder.chmod(0o755)
    for folder in (short_folder / "run", short_folder):
        with closing(RuntimeDir(folder)) as runtime, pytest.raises(HeldError, match=str(runtime.path)):
            RuntimeDir(folder)


def test_a_symbolic_link_is_not_followed(short_folder: Path) -> None:
    (short_folder / "real").mkdir(mode=0o700)
    (short_folder / "link").symlink_to(short_folder / "real")
    with pytest.raises(OSError, match="link is a symbolic link"):
        RuntimeDir(short_folder / "link")
    (short_folder / SUBFOLDER).symlink_to(short_folder / "real")
    with pytest.raises(OSError, match=f"{SUBFOLDER} is a symbolic link"):
        RuntimeDir(short_folder)
    assert names(short_folder / "real") == []


def test_a_subfolder_that_is_not_the_daemons_is_refused(short_folder: Path) -> None:
    (short_folder / SUBFOLDER).mkdir(mode=0o755)
    with pytest.raises(OSError, match="has mode 755, not 700; set runtime_dir"):
        RuntimeDir(short_folder)
    (short_folder / SUBFOLDER).chmod(0o700)
    (short_folder / SUBFOLDER / "w1.sock").touch()
    with pytest.raises(OSError, match="holds files that are not the daemon's"):
        RuntimeDir(short_folder)
    assert names(short_folder / SUBFOLDER) == ["w1.sock"]


def test_a_subfolder_of_another_user_is_refused(short_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (short_folder / SUBFOLDER).mkdir(mode=0o700)
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    with pytest.raises(OSError, match=f"{SUBFOLDER} belongs to another user"):
        RuntimeDir(short_folder)


def test_systemds_folder_keeps_its_mode_and_the_front_socket(
    short_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short_folder.chmod(0o750)
    (short_folder / "front.sock").touch()
    monkeypatch.setenv("RUNTIME_DIRECTORY", f"{short_folder}:/elsewhere")
    with closing(RuntimeDir(None)) as runtime:
        assert runtime.path == short_folder / SUBFOLDER
    assert mode(short_folder) == 0o750
    assert names(short_folder) == ["front.sock", SUBFOLDER]


def test_without_a_configured_folder_a_new_one_is_made_and_removed(
    short_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_folder))
    with closing(RuntimeDir(None)) as one, closing(RuntimeDir(None)) as other:
        assert one.path != other.path
        assert one.path.parent == other.path.parent == short_folder
        assert mode(one.path) == 0o700
        one.worker_socket(1).touch()
    assert names(short_folder) == []


def test_only_folders_of_killed_daemons_are_cleared_away(short_folder: Path) -> None:
    killed_daemon(short_folder / "multitower-killed")
    for name, permissions in (("multitower-src", 0o755), ("multitower-mine", 0o700)):
        (short_folder / name).mkdir(mode=permissions)
        (short_folder / name / "lock").touch()
        (short_folder / name / "w1.sock").touch()
    (short_folder / "multitower-link").symlink_to(short_folder / "multitower-mine")
    killed_daemon(short_folder / "multitower-used")
    (short_folder / "multitower-used" / "notes").touch()
    remove_stale(short_folder)
    assert names(short_folder) == ["multitower-link", "multitower-mine", "multitower-src", "multitower-used"]
    assert names(short_folder / "multitower-mine") == names(short_folder / "multitower-src") == ["lock", "w1.sock"]
    assert names(short_folder / "multitower-used") == ["notes"]


def test_a_path_that_is_too_long_for_sockets_makes_nothing(short_folder: Path) -> None:
    folder = short_folder / ("x" * (MAX_IPC_PATH - len(f"{short_folder}/") - len(LONGEST_NAME)))
    with pytest.raises(OSError, match="is too long for sockets"):
        RuntimeDir(folder)
    assert names(short_folder) == []


def test_a_lock_file_that_is_a_link_is_refused(short_folder: Path) -> None:
    (short_folder / "theirs").write_text("theirs")
    (short_folder / "lock").symlink_to(short_folder / "theirs")
    with pytest.raises(OSError, match="is a symbolic link"):
        FileLock(short_folder / "lock")
    (short_folder / "lock").unlink()
    (short_folder / "lock").symlink_to(short_folder / "new")
    with pytest.raises(OSError, match="is a symbolic link"):
        FileLock(short_folder / "lock")
    assert not (short_folder / "new").exists()
    assert (short_folder / "theirs").read_text() == "theirs"


def test_a_lock_file_that_is_a_pipe_is_refused(short_folder: Path) -> None:
    os.mkfifo(short_folder / "lock")
    with pytest.raises(OSError, match="is no regular file"):
        FileLock(short_folder / "lock")


def test_a_lock_is_exclusive_and_removed_with_its_release(short_folder: Path) -> None:
    lock = FileLock(short_folder / "lock")
    with pytest.raises(HeldError, match="held by another process"):
        FileLock(short_folder / "lock")
    lock.release()
    assert names(short_folder) == []


def test_a_lock_file_of_somebody_else_is_not_removed(short_folder: Path) -> None:
    lost = FileLock(short_folder / "lock")
    (short_folder / "lock").unlink()
    holder = FileLock(short_folder / "lock")
    lost.release()
    with pytest.raises(HeldError):
        FileLock(short_folder / "lock")
    holder.release()


def test_a_removed_folder_is_made_again_and_locked(short_folder: Path) -> None:
    with closing(RuntimeDir(short_folder / "run")) as runtime:
        assert not runtime.restore()
        shutil.rmtree(runtime.path)
        assert not runtime.intact
        assert runtime.restore()
        assert (runtime.path, mode(runtime.path)) == (short_folder / "run", 0o700)
        assert runtime.intact
        with pytest.raises(HeldError):
            RuntimeDir(short_folder / "run")
    assert names(short_folder / "run") == []


def test_a_removed_lock_is_made_again_and_the_sockets_stay(short_folder: Path) -> None:
    with closing(RuntimeDir(short_folder / "run")) as runtime:
        runtime.worker_socket(1).touch()
        (runtime.path / LOCK_NAME).unlink()
        assert runtime.restore()
        assert names(runtime.path) == [LOCK_NAME, "w1.sock"]
        assert runtime.path == short_folder / "run"
        with pytest.raises(HeldError):
            RuntimeDir(short_folder / "run")


@pytest.mark.parametrize(
    ("lock_only", "message"),
    [(False, "runtime folder was removed"), (True, "lock of the runtime folder was removed")],
    ids=["the folder", "its lock"],
)
def test_the_log_tells_what_was_removed(
    short_folder: Path, caplog: pytest.LogCaptureFixture, lock_only: bool, message: str
) -> None:
    with closing(RuntimeDir(short_folder / "run")) as runtime:
        if lock_only:
            (runtime.path / LOCK_NAME).unlink()
        else:
            shutil.rmtree(runtime.path)
        assert runtime.restore()
    assert [record.getMessage() for record in caplog.records] == [f"{message}: it is made again"]


@pytest.mark.parametrize("replaced_by", ["a file", "another daemon", "a shared folder"])
def test_a_folder_that_cannot_be_made_again_is_replaced_by_a_temporary_one(
    short_folder: Path, monkeypatch: pytest.MonkeyPatch, replaced_by: str
) -> None:
    (short_folder / "xdg").mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_folder / "xdg"))
    runtime = RuntimeDir(short_folder / "run")
    shutil.rmtree(short_folder / "run")
    other = None
    if replaced_by == "a file":
        (short_folder / "run").touch()
    elif replaced_by == "another daemon":
        other = RuntimeDir(short_folder / "run")
    else:
        (short_folder / "run").mkdir(mode=0o755)
    assert runtime.restore()
    assert runtime.path.parent == short_folder / "xdg"
    assert runtime.intact
    runtime.close()
    assert names(short_folder / "xdg") == []
    if other is not None:
        assert other.intact, "the other daemon's folder stays as it is"
        other.close()


def test_the_temporary_folder_moves_when_the_folder_above_it_is_removed(
    short_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("xdg", "tmp"):
        (short_folder / name).mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_folder / "xdg"))
    monkeypatch.setattr(tempfile, "tempdir", str(short_folder / "tmp"))
    with closing(RuntimeDir(None)) as runtime:
        assert runtime.path.parent == short_folder / "xdg"
        shutil.rmtree(short_folder / "xdg")  # as at a logout
        assert runtime.restore()
        assert runtime.path.parent == short_folder / "tmp"
    assert names(short_folder / "tmp") == []


def test_without_a_usable_xdg_runtime_dir_the_temporary_folder_is_used(
    short_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(short_folder))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    assert temporary_base() == (short_folder, None)
    (short_folder / "xdg").mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_folder / "xdg"))
    assert temporary_base() == (short_folder / "xdg", None)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_folder / "absent"))
    folder, refused = temporary_base()
    assert folder == short_folder
    assert refused == f"{short_folder / 'absent'} cannot be used: No such file or directory"


def test_the_xdg_runtime_dir_of_another_user_is_not_used_and_a_line_says_so(
    short_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (short_folder / "xdg").mkdir(mode=0o700)
    (short_folder / "tmp").mkdir(mode=0o700)
    monkeypatch.setattr(tempfile, "tempdir", str(short_folder / "tmp"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_folder / "xdg"))
    status = (short_folder / "xdg").stat()
    if os.geteuid() == 0:
        os.chown(short_folder / "xdg", 4711, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: status.st_uid + 1)
    folder, refused = temporary_base()
    assert folder == short_folder / "tmp"
    assert refused is not None
    assert "is no folder that belongs to this user" in refused
    if os.geteuid() == 0:
        with closing(RuntimeDir(None)) as runtime:
            assert runtime.path.parent == short_folder / "tmp"
        assert "XDG_RUNTIME_DIR is not used" in caplog.text


def test_programs_that_remove_old_files_find_the_folder_locked(short_folder: Path) -> None:
    with closing(RuntimeDir(short_folder / "run")) as runtime:
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
