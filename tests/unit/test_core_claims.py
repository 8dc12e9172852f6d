"""Daemons of a machine claim the cores that they bind workers to. No machine has the cores of these tests."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from multitower.supervisor.machine.core_claims import CoreClaims, read_claims


@pytest.fixture
def claims() -> Iterator[CoreClaims]:
    made = CoreClaims()
    yield made
    made.close()


@pytest.fixture
def others() -> Iterator[CoreClaims]:
    made = CoreClaims()
    yield made
    made.close()


def test_claimed_cores_are_taken_for_others_until_they_are_given_up(claims: CoreClaims, others: CoreClaims) -> None:
    claims.claim(range(70001, 70005))
    assert others.taken() >= set(range(70001, 70005))
    assert not claims.taken() & set(range(70001, 70005))
    claims.claim((70003, 70009))
    assert others.taken() >= {*range(70001, 70005), 70009}
    claims.close()
    assert not others.taken() & set(range(70001, 70010))


def test_a_list_that_is_too_long_for_a_name_is_claimed_as_a_whole(claims: CoreClaims, others: CoreClaims) -> None:
    scattered = set(range(71001, 71401, 2))
    claims.claim(scattered)
    assert others.taken() & set(range(71001, 71401)) == scattered


def test_the_claims_of_a_process_that_is_killed_are_gone(claims: CoreClaims) -> None:
    code = (
        "import sys; from multitower.supervisor.machine.core_claims import CoreClaims; claims = CoreClaims();"
        "claims.claim({72001}); print('claimed', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert 72001 in claims.taken()
        process.kill()
    assert 72001 not in claims.taken()


def test_only_one_daemon_at_a_time_has_its_turn(claims: CoreClaims, others: CoreClaims) -> None:
    seen: list[str] = []
    waits = threading.Event()

    def take_turn() -> None:
        waits.set()
        with others.turn():
            seen.append("other")

    thread = threading.Thread(target=take_turn)
    with claims.turn():
        thread.start()
        assert waits.wait(10)
        thread.join(0.1)
        seen.append("first")
    thread.join(10)
    assert seen == ["first", "other"]


def test_lines_of_other_sockets_and_broken_names_are_ignored(tmp_path: Path) -> None:
    file = tmp_path / "unix"
    file.write_text(
        "Num       RefCount Protocol Flags    Type St Inode Path\n"
        "0: 00000002 00000000 00000000 0002 01 1 @multitower-cores:12:ab:0-1,8\n"
        "0: 00000002 00000000 00000000 0002 01 2 @multitower-cores:12:ab:9\n"
        "0: 00000002 00000000 00000000 0002 01 3 @multitower-cores:34:cd:x-y\n"
        "0: 00000002 00000000 00000000 0002 01 4 @multitower-cores-turn\n"
        "0: 00000002 00000000 00000000 0001 01 5 /run/x @multitower\n"
        "0: 00000002 00000000 00000000 0001 01 6\n"
    )
    assert read_claims(file) == {"12:ab": {0, 1, 8, 9}}
    assert read_claims(tmp_path / "missing") == {}
