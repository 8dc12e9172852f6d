"""`multitower check`, on a machine without GPUs and with fake GPUs."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import without_privileges
from click.testing import CliRunner
from fake_gpus import UUIDS, FakeGpus
from made_security import make_keys, make_security, write_certificate, write_principals
from without_privileges import give_away

from multitower.bearer_tokens import hash_secret
from multitower.cli.commands import multitower
from multitower.exit_codes import Exit

TEXT = """\
models:
  - name: digits
    path: digits
  - {name: thumbnails, handler: "checked_handlers:Thumbnailer"}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path) -> Path:
    for version in ("1", "12", "3"):
        (tmp_path / "digits" / version).mkdir(parents=True)
        (tmp_path / "digits" / version / "saved_model.pb").touch()
    (tmp_path / "x.yaml").write_text(TEXT)
    (tmp_path / "checked_handlers.py").write_text("class Thumbnailer: ...\n")
    return tmp_path


def check(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the command in this process, which costs a tenth of a new one's CPU time."""
    with contextlib.chdir(folder):
        done = CliRunner().invoke(multitower, ["check", *arguments], env=environment)
    return subprocess.CompletedProcess(arguments, done.exit_code, done.stdout, done.stderr)


def run_check(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the command as users do: for what is the process's own, such as its libraries and its streams."""
    return subprocess.run(
        [sys.executable, "-m", "multitower", "check", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=folder,
        env={**os.environ, **environment},
        check=False,
    )


def test_a_correct_configuration_is_summarized(folder: Path) -> None:
    done = run_check(folder, "x.yaml")
    assert (done.returncode, done.stderr) == (Exit.OK, "")
    assert done.stdout.splitlines() == [
        "x.yaml is correct.",
        "  listen   tcp://127.0.0.1:5555",
        "  devices  all GPUs; 1 worker on each",
        f"  models   digits      {folder}/digits, version 12",
        "           thumbnails  checked_handlers:Thumbnailer",
        "  limits   a load fails after 30 min (load_timeout)",
        "           if every slot fails, the daemon runs on (exit_when_failed: false)",
        "Only the file was checked; --devices also checks it against this machine's devices.",
    ]


def test_who_gets_in_is_shown_and_what_locks_somebody_out(folder: Path) -> None:
    entry = {"roles": ["infer"], "public_key": make_keys().public}
    old = str(replace(hash_secret("x" * 43), fingerprint=None))
    with_token = {"name": "old", "token_hash": old, "roles": ["infer"]}
    make_security(folder, [{"name": "one", "models": ["digits", "thumb-*"], **entry}, with_token])
    certificate, key = write_certificate(folder)
    (folder / "x.yaml").write_text(f"""{TEXT}
listen: ["tcp://0.0.0.0:5555"]
security: {{curve: {{secret_key: server.key_secret}}, principals: principals.yaml}}
gateway: {{http: "0.0.0.0:8000", tls: {{certificate: {certificate}, private_key: {key}}}}}
""")
    done = check(folder, "x.yaml")
    assert done.returncode == Exit.OK, done.stderr
    lines = done.stdout.splitlines()
    at = lines.index("  access   CURVE; principals: 2 (1 with a key, 1 with a token)")
    assert lines[at + 1] == "           note: one: thumb-* matches no model of this configuration"
    assert lines[at + 2].startswith("           note: old: a token_hash without f=")
    assert f"TLS: {certificate} " in lines[at + 3]
    write_principals(folder / "principals.yaml", [])
    assert "note: without a principal nobody is let in over tcp, HTTP and gRPC" in check(folder, "x.yaml").stdout


def test_overrides_are_applied(folder: Path) -> None:
    done = check(folder, "x.yaml", "--set", "devices=[0, [1, GPU-8f]]", MULTITOWER_WORKERS_PER_DEVICE="2")
    assert "devices  0, [1, GPU-8f]; 2 workers on each" in done.stdout


def of_digits(load_timeout: str) -> str:
    return TEXT.replace("path: digits\n", f"path: digits\n    load_timeout: {load_timeout}\n")


def test_limits_and_what_follows_from_them_are_shown(folder: Path) -> None:
    (folder / "x.yaml").write_text(f"load_timeout: 1h\nexit_when_failed: true\n{of_digits('2m')}")
    lines = check(folder, "x.yaml").stdout.splitlines()
    assert "  limits   a load fails after 60 min, digits 2 min (load_timeout)" in lines
    assert "           if every slot fails, the daemon exits with 69 (exit_when_failed: true)" in lines


@pytest.mark.parametrize("value", ["0s", "soon", "30"])
def test_a_load_timeout_that_is_no_duration_is_refused_with_its_place(folder: Path, value: str) -> None:
    (folder / "x.yaml").write_text(f"load_timeout: {value}\n{of_digits(value)}")
    lines = check(folder, "x.yaml").stderr.splitlines()
    assert [line.split(": ")[1] for line in lines] == ["load_timeout", "models[0].load_timeout"]


def test_all_mistakes_are_printed_at_once(folder: Path) -> None:
    (folder / "x.yaml").write_text(TEXT + "spare: 1\n")
    done = check(folder, "x.yaml", "--set", "cores=x", "--devices", MULTITOWER_SPARES="many")
    assert (done.returncode, done.stdout) == (Exit.CONFIG, "")
    assert [line.split(": ")[0] for line in done.stderr.splitlines()] == [
        "x.yaml:5:1",
        "--set cores",
        "MULTITOWER_SPARES",
    ]
    assert "did you mean 'spares'?" in done.stderr


def test_a_missing_file_gets_a_suggestion(folder: Path) -> None:
    done = check(folder, "y.yaml")
    assert (done.returncode, done.stdout) == (Exit.CONFIG, "")
    assert done.stderr == f"y.yaml: there is no such file in {folder} (did you mean 'x.yaml'?)\n"


def test_devices_shows_what_each_worker_would_get(folder: Path, fake_gpus: FakeGpus) -> None:
    arguments = ("--devices", "--set", "devices=[1, 0]", "--set", "memory=50%", "--set", "threads.intra_op=3")
    done = run_check(folder, "x.yaml", *arguments, **fake_gpus.environment())
    assert done.returncode == Exit.OK, done.stderr
    first, second = [line for line in done.stdout.splitlines() if "GPU-" in line]
    assert first.startswith(f"  slots    0  {UUIDS[1]}, 3 intra-op and ")
    assert second.startswith(f"           1  {UUIDS[0]}, 3 intra-op and ")
    assert ", memory 20.0 GiB" in first
    assert "Only the file" not in done.stdout


def test_each_worker_gets_cores_near_its_device(folder: Path, fake_gpus: FakeGpus) -> None:
    cores = sorted(os.sched_getaffinity(0))
    first, last = cores[0], cores[-1]
    environment = fake_gpus.environment(affinity=f"0:0:{first}-{first},1:1:{last}-{last}")
    done = run_check(folder, "x.yaml", "--devices", "--set", "devices=[1, 0]", "--set", "cores=split", **environment)
    near = [line.rpartition(", cores ")[2] for line in done.stdout.splitlines() if "GPU-" in line]
    assert near == [str(last), str(first)]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("devices=[0, 9]", "devices: 9 is not the index of a GPU here"),
        ("memory=100GiB", "is more than the 40.0 GiB of"),
    ],
)
def test_devices_that_the_machine_does_not_have_are_mistakes(
    folder: Path, fake_gpus: FakeGpus, override: str, words: str
) -> None:
    arguments = ("x.yaml", "--set", override)
    assert check(folder, *arguments).returncode == Exit.OK, "the file itself is correct"
    done = run_check(folder, *arguments, "--devices", **fake_gpus.environment())
    assert (done.returncode, done.stdout) == (Exit.CONFIG, "")
    assert done.stderr.startswith("x.yaml: ")
    assert words in done.stderr


def test_cpu_devices_need_no_gpu(folder: Path) -> None:
    done = check(folder, "x.yaml", "--devices", "--set", "devices={cpu: 2}")
    assert done.returncode == Exit.OK
    assert "0  cpu:0, " in done.stdout
    assert "1  cpu:1, " in done.stdout


def test_a_file_name_that_is_not_utf8_is_printed_escaped(folder: Path) -> None:
    (folder / "x.yaml").rename(folder / os.fsdecode(b"\xff.yaml"))
    done = run_check(folder, os.fsdecode(b"\xff.yaml"), PYTHONIOENCODING="utf-8:strict")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\\udcff.yaml is correct." in done.stdout


def test_a_handler_that_does_not_exist_is_found_without_importing_anything(folder: Path) -> None:
    (folder / "checked_handlers.py").write_text("raise SystemExit\nclass Thumbnailr: ...\n")
    done = check(folder, "x.yaml")
    assert done.returncode == Exit.CONFIG
    assert "x.yaml:4:33: models[1].handler: " in done.stderr
    assert "checked_handlers.py has no class 'Thumbnailer' (did you mean 'Thumbnailr'?)" in done.stderr
    (folder / "checked_handlers.py").unlink()
    done = check(folder, "x.yaml")
    assert done.returncode == Exit.CONFIG
    assert f"there is no module 'checked_handlers' in the folders that were searched: {folder} (the" in done.stderr


def test_a_file_that_may_not_be_read_names_the_user(folder: Path) -> None:
    give_away(folder / "x.yaml", 0o600)
    for command in (["check"], ["doctor"], ["serve"], ["convert-config"]):
        done = without_privileges.run(["-m", "multitower", *command, str(folder / "x.yaml")])
        assert "x.yaml: cannot be read: Permission denied" in done.stderr
        assert done.returncode == (Exit.TEMPORARY if command == ["serve"] else Exit.CONFIG)


def test_keys_that_need_batches_are_noted_where_there_are_none(folder: Path) -> None:
    for batching, note in (
        ("{max_batch_size: 0, max_queue_delay: 5ms}", "max_batch_size is 0, so max_queue_delay has no effect"),
        (
            "{max_batch_size: 0, trust: true, pad_variable_length_inputs: true}",
            "max_batch_size is 0, so pad_variable_length_inputs, trust have no effect",
        ),
        ("{max_batch_size: 0}", None),
        ("{max_queue_delay: 5ms, trust: true}", None),
    ):
        (folder / "x.yaml").write_text(
            TEXT.replace("    path: digits\n", f"    path: digits\n    batching: {batching}\n")
        )
        done = check(folder, "x.yaml")
        assert done.returncode == Exit.OK
        assert (f"note: digits: {note}" if note else "is correct") in done.stdout
        assert ("note:" in done.stdout) == bool(note)
