"""benchmarks/security.py runs: both sides of each ratio are served, and every answer is right."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import foreign
import pytest
from running import START_S

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "security.py"


def run(part: str) -> str:
    command = [sys.executable, str(PROGRAM), "--rounds", "1", "--seconds", "0.2", "--parts", part]
    # Tests of the wheel forbid programs to import from their own folder, where a benchmark has its helpers.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=START_S, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def check(written: str, what: str) -> None:
    titles = [line for line in written.splitlines() if line.startswith(what)]
    assert [line.partition("(")[2].partition(",")[0] for line in titles] == ["64 bytes", "600 kB"]
    assert all(float(found) > 0 for found in re.findall(r"requests/s +([0-9.]+)", written))
    assert written.count("per CPU s") == 2


def test_curve_is_measured_and_what_computes_it_is_said() -> None:
    written = run("curve")
    assert re.search("with (libsodium|TweetNaCl)", written)
    check(written, "CURVE, of tcp without it")


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed: apt-get install wrk")
@pytest.mark.skipif(bool(foreign.gateway_missing()), reason=str(foreign.gateway_missing()))
def test_tls_is_measured() -> None:
    check(run("tls"), "TLS, of HTTP without it")
