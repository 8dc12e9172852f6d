from __future__ import annotations

import json
import subprocess
import sys

from multitower.supervisor.config.config import schema


def test_it_prints_the_schema_and_nothing_else() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "multitower", "schema"], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stderr == ""
    assert json.loads(done.stdout) == schema()
