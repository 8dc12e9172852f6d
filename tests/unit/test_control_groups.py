"""Where control groups of workers are made, in trees of files like those of the kernel."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from multitower.supervisor.workers.control_groups import ControlGroups

MOUNT = "30 20 0:5 / /sys/fs/cgroup rw shared:4 - cgroup2 none rw\n"
FILES = ("cgroup.procs", "cgroup.kill")


def make_tree(root: Path, *folders: str, own: str, mounts: str = MOUNT, files: tuple[str, ...] = FILES) -> None:
    for folder in folders:
        (root / "sys/fs/cgroup" / folder).mkdir(parents=True, exist_ok=True)
        for file in files:
            (root / "sys/fs/cgroup" / folder / file).write_text("")
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(f"0::{own}\n")
    (root / "proc/self/mountinfo").write_text(mounts)


def test_a_container_that_sees_no_other_group_has_groups_for_workers(tmp_path: Path) -> None:
    make_tree(tmp_path, ".", own="/")
    folder = ControlGroups(tmp_path).folder
    assert folder == tmp_path / f"sys/fs/cgroup/multitower.{os.getpid()}"


@pytest.mark.parametrize(
    ("own", "mounts", "files"),
    [
        ("/a", MOUNT, FILES),  # the group of a service, and no attribute tells that it is delegated
        ("/", MOUNT, ("cgroup.procs",)),  # an old kernel, or the root group of the machine
        ("/", "", FILES),  # no hierarchy of version 2
    ],
)
def test_elsewhere_workers_get_no_groups(tmp_path: Path, own: str, mounts: str, files: tuple[str, ...]) -> None:
    make_tree(tmp_path, ".", "a", own=own, mounts=mounts, files=files)
    groups = ControlGroups(tmp_path)
    assert (groups.folder, groups.make(), groups.close()) == (None, None, True)


def test_the_group_of_a_process_is_found_also_below_that_of_its_worker(tmp_path: Path) -> None:
    make_tree(tmp_path, ".", own="/")
    groups = ControlGroups(tmp_path)
    made = groups.make()
    assert made is not None
    own = f"/multitower.{os.getpid()}"
    (Path(made) / "inner").mkdir()
    for pid, path in ((2, "/"), (3, own), (4, f"{own}/worker.1"), (5, f"{own}/worker.1/inner")):
        (tmp_path / f"proc/{pid}").mkdir()
        (tmp_path / f"proc/{pid}/cgroup").write_text(f"0::{path}\n")
    assert [groups.group_of(pid) for pid in (2, 3, 4, 5, 6)] == [None, None, made, made, None]
