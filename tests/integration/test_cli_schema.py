from __future__ import annotations

import json
import subprocess
import sys

from multitower.supervisor.config.config import schema


def test_schema_prints_only_the_schema() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "multitower", "schema"], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stderr == ""
    assert json.loads(done.stdout) == schema()
