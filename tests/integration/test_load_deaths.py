"""Real workers that are killed while a model warms up: the next ones stop earlier, and other models are served."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from running import Running, copy_handlers, multitower
from status_rows import model_row

CONFIG = """
listen: ["{endpoint}"]
devices: {cpu: 1}
models:
  - name: good
    handler: handlers:Echo
  - name: greedy
    handler: handlers:Greedy
    parameters: {rows: ROWS}
    batching: {max_batch_size: 1000}
    warmup: rows.npz
spares: 0
restart: {backoff: {first: 100ms, max: 100ms}}
"""


def running(folder: Path, rows: int) -> Running:
    np.savez(folder / "rows.npz", x=np.array([[1], [2]], np.float32))
    return Running(folder, CONFIG.replace("ROWS", str(rows)))


def test_batches_stay_below_the_rows_that_killed_a_worker_in_its_warm_up(tmp_path: Path) -> None:
    with running(tmp_path, 300) as daemon, daemon.wait_ready().client() as client:
        line = daemon.wait_line("worker died in a warm-up: the next one stops at fewer rows")
        assert (line["model"], line["rows"], line["safe_rows"]) == ("greedy", 512, 256)
        slot = daemon.slot()
        assert (slot["safe_rows"], slot["restarts"], slot["step"]) == ({"greedy": 256}, 1, None)
        rows = np.arange(2000, dtype=np.float32).reshape(-1, 1)
        assert client.infer("greedy", {"x": rows})["x"].tolist() == rows.tolist()
        assert daemon.slot()["restarts"] == 1
        assert daemon.end() == 0


def test_doctor_finds_the_rows_that_kill_a_worker_in_its_warm_up(tmp_path: Path) -> None:
    np.savez(tmp_path / "rows.npz", x=np.array([[1], [2]], np.float32))
    copy_handlers(tmp_path)
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.replace("{endpoint}", "tcp://127.0.0.1:5999").replace("ROWS", "300"))
    command = [sys.executable, "-m", "multitower", "doctor", "--json", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    findings = json.loads(done.stdout)["findings"]
    (found,) = (each for each in findings if "in the warm-up with" in each["text"])
    assert found["level"] == "problem"
    assert found["text"].startswith(
        "greedy ends its process in the warm-up with 512 rows: its process killed by SIGKILL"
    )
    assert "max_batch_size to 256 or less" in found["advice"]


def test_a_model_whose_warm_up_always_kills_leaves_the_slot_to_the_others(tmp_path: Path) -> None:
    with running(tmp_path, 0) as daemon, daemon.wait_ready().client() as client:
        daemon.wait_line("model is not loaded any more", model="greedy")
        assert (model_row(client, "good")["state"], model_row(client, "greedy")["state"]) == ("ready", "failed")
        cause = model_row(client, "greedy")["cause"]
        assert "it has ended 3 workers of the slot: killed by SIGKILL (9)" in cause
        assert "while warming up greedy version 1 with 1 row" in cause
        assert client.infer("good", {"x": np.ones(1)})["x"].tolist() == [1]
        assert daemon.slot()["restarts"] == 2, "the third time it was tried beside the worker that serves"

        daemon.config.write_text(daemon.config.read_text().replace("rows: 0", "rows: 2000"))
        loaded = multitower("load", "greedy", daemon=daemon)
        assert loaded.returncode == 0, f"{loaded.stderr}\n{daemon.text()}"
        assert model_row(client, "greedy")["state"] == "ready"
        assert daemon.end() == 0
