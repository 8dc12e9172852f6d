"""`multitower convert-config`, and `multitower check` on its output."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from multitower.exit_codes import Exit

MODELS = """\
# as TensorFlow Serving reads it
model_config_list {
  config {
    name: 'digits'
    base_path: 'FOLDER/digits/'
    model_platform: 'tensorflow'
    model_version_policy { specific { versions: 42 versions: 43 } }
    version_labels { key: 'stable' value: 42 }
    version_labels { key: 'old' value: 41 }
    logging_config { }
  }
}
"""
BATCHING = """\
max_batch_size { value: 128 }
batch_timeout_micros { value: 0 }
max_enqueued_batches { value: 1000 }
num_batch_threads { value: 8 }
"""


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "multitower", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=folder, check=False)


def test_the_output_is_a_valid_configuration_and_notes_go_to_stderr(tmp_path: Path) -> None:
    for version in ("42", "43"):
        (tmp_path / "digits" / version).mkdir(parents=True)
        (tmp_path / "digits" / version / "saved_model.pb").touch()
    (tmp_path / "models.config").write_text(MODELS.replace("FOLDER", str(tmp_path)))
    (tmp_path / "batching.txt").write_text(BATCHING)
    done = run(tmp_path, "convert-config", "models.config", "--batching", "batching.txt")
    assert done.returncode == Exit.OK, done.stderr
    notes = done.stderr.splitlines()
    assert [note.split(" ")[0] for note in notes] == [
        "batching.txt:4:",
        "batching.txt:3:",
        "models.config:10:",
        "models.config:9:",
    ]
    assert all(f"# {note}" in done.stdout for note in notes)
    (tmp_path / "ours.yaml").write_text(done.stdout)
    checked = run(tmp_path, "check", "ours.yaml")
    assert checked.returncode == Exit.OK, checked.stderr
    assert f"digits  {tmp_path}/digits, versions 42, 43" in checked.stdout


def test_a_mistake_in_a_file_is_printed_with_line_and_column(tmp_path: Path) -> None:
    (tmp_path / "wrong.config").write_text("model_config_list {\n  config {\n    name 'digits'\n")
    (tmp_path / "latin.config").write_bytes(b"model_config_list { } # \xe9")
    for name, words in (
        ("wrong.config", "wrong.config:3:10: ':' is expected, not \"'digits'\""),
        ("latin.config", "latin.config: is not UTF-8"),
        ("absent.config", "absent.config: cannot be read: No such file or directory"),
    ):
        done = run(tmp_path, "convert-config", name)
        assert (done.returncode, done.stdout) == (Exit.CONFIG, "")
        assert done.stderr == f"{words}\n"


def test_the_exit_code_is_1_without_any_model(tmp_path: Path) -> None:
    (tmp_path / "models.config").write_text("model_config_list { config { name: 'm' base_path: 's3://m' } }")
    done = run(tmp_path, "convert-config", "models.config")
    assert done.returncode == 1
    assert "models: []" in done.stdout
    assert "no model could be carried over" in done.stderr
