"""What a daemon says of its security when it starts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from locked_daemon import CONFIG
from made_security import SERVER_KEY, make_security
from running import START_S, Running

from multitower.exit_codes import Exit


def test_a_secret_that_others_may_read_is_a_start_failure(tmp_path: Path) -> None:
    make_security(tmp_path)
    (tmp_path / SERVER_KEY).chmod(0o640)
    with Running(tmp_path, CONFIG) as daemon:
        assert daemon.wait_end(START_S) == Exit.CONFIG
        assert "others may use" in daemon.stderr
        assert os.fspath(tmp_path / SERVER_KEY) in daemon.stderr


@pytest.mark.parametrize(
    ("security", "consequence"), [(False, "used without `security`"), (True, "tokens in the clear")]
)
def test_insecure_is_said(tmp_path: Path, security: bool, consequence: str) -> None:
    config = CONFIG.replace("127.0.0.1:*", "0.0.0.0:*") + "insecure: true\n"
    lines = [line for line in config.splitlines() if security or not line.startswith("security")]
    make_security(tmp_path)
    with Running(tmp_path, "\n".join(lines)) as daemon:
        line = daemon.wait_line("insecure is set")
        assert (line["level"], line["security"]) == ("warning", security)
        assert consequence in line["message"]
        assert daemon.status()["daemon"]["insecure"] is True
