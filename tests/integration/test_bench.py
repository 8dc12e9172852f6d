"""`multitower bench` with a real daemon, and with daemons that it starts itself."""

from __future__ import annotations

import contextlib
import json
import operator
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from click.testing import CliRunner, Result
from running import Running, copy_handlers
from waiting import wait_for

from multitower.cli import commands
from multitower.exit_codes import Exit

STEP_S = 60.0
QUICK = ("--seconds", "0.5", "--warmup", "0.1")
CONFIG = """
listen: ["{endpoint}"]
devices: {cpu: 2}
spares: 0
models:
  - {name: declared, handler: "handlers:Declared", batching: {max_batch_size: 8}}
  - {name: reckoner, handler: "handlers:Reckoner"}
  - {name: sleeper, handler: "handlers:Sleeper", parameters: {seconds: 0.02}}
  - {name: narrow, handler: "handlers:Sleeper", parameters: {seconds: 0.05}, queue: {max_size: 4}}
"""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with Running(tmp_path_factory.mktemp("bench"), CONFIG) as running:
        yield running.wait_ready()


def bench(*arguments: str | Path, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "multitower", "bench", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=STEP_S, cwd=folder, check=False)


def refused(*arguments: str | Path, folder: Path) -> Result:
    """Runs a bench that ends before it measures, in this process: that costs a tenth of a new one's CPU time."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        with contextlib.chdir(folder):
            return CliRunner().invoke(commands.multitower, ["bench", *map(str, arguments)])
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def measured(daemon: Running, folder: Path, *arguments: str | Path) -> tuple[dict[str, Any], str]:
    """Runs a bench that must succeed; returns its JSON and its text."""
    done = bench("--endpoint", daemon.endpoint, "--json", folder / "figures.json", *arguments)
    assert done.returncode == Exit.OK, done.stderr
    return json.loads((folder / "figures.json").read_text()), done.stdout


def test_a_closed_loop_is_shared_by_client_processes(daemon: Running, tmp_path: Path) -> None:
    figures, text = measured(
        daemon, tmp_path, "declared", *QUICK, "--concurrency", "1,6", "--processes", "2", "--rows", "3"
    )
    assert figures["complete"]
    assert figures["inputs"]["first"]["x"] == {"datatype": "FP32", "shape": [3, 3]}
    one, six = figures["steps"]
    assert (one["loop"], one["amount"], six["amount"]) == ("closed", 1, 6)
    for step in (one, six):
        assert step["answered"] > 0
        assert step["rows_per_s"] == pytest.approx(3 * step["requests_per_s"])
        assert (step["errors"], step["refused"]) == (0, 0)
        assert step["latency_s"]["p50"] <= step["latency_s"]["p99"] <= step["latency_s"]["max"]
    # One request outstanding needs no second process.
    assert [len(step["evidence"]["clients"]) for step in (one, six)] == [1, 2]
    evidence = six["evidence"]
    assert evidence["router"] > 0
    assert [worker["slot"] for worker in evidence["workers"]] == [0, 1]
    assert evidence["batch_rows"] >= 3
    assert "Bottleneck at" in text
    assert "6 outstanding" in text


def test_a_slow_device_is_the_bottleneck(daemon: Running, tmp_path: Path) -> None:
    figures, text = measured(
        daemon, tmp_path, "sleeper", "--shape", "x:1,4", "--seconds", "2", "--warmup", "0.3", "--concurrency", "16"
    )
    (step,) = figures["steps"]
    # Two workers that take 20 ms cannot answer more; the other requests wait in the queue.
    assert step["requests_per_s"] <= 105
    assert step["evidence"]["compute"] > 0.8
    assert step["evidence"]["queued"] > 5
    assert "device" in {step["bottleneck"]["part"], *step["bottleneck"]["also_near_their_limit"]}
    assert "Rows a batch" in text


def test_open_loop_latency_counts_from_when_a_request_was_due(daemon: Running, tmp_path: Path) -> None:
    # 300 requests a second are due, and 100 can be answered: after 1.5 s, latencies exceed a second, although each
    # request is computed in 20 ms.
    figures, _ = measured(
        daemon, tmp_path, "sleeper", "--shape", "x:1,4", "--rate", "300", "--seconds", "1.5", "--warmup", "0"
    )
    (step,) = figures["steps"]
    assert step["loop"] == "open"
    assert step["requests_due"] == step["answered"] + step["refused"] + step["errors"]
    assert 300 < step["requests_due"] < 600
    assert step["requests_per_s"] <= 105
    assert step["latency_s"]["max"] > 1.0
    assert step["latency_s"]["p50"] > 0.25


def test_refusals_and_errors_are_counted_separately(daemon: Running, tmp_path: Path) -> None:
    figures, text = measured(
        daemon, tmp_path, "narrow", "--shape", "x:1,4", *QUICK, "--concurrency", "32", "--timeout", "5"
    )
    (step,) = figures["steps"]
    assert step["refused"] > 0
    assert step["errors"] == 0
    assert set(step["errors_by_reason"]) == {"queue_full"}
    assert "queue_full" in text

    # Every other request makes the model raise.
    np.savez(tmp_path / "mixed.npz", x=np.array([[1], [-1]]))
    figures, text = measured(
        daemon, tmp_path, "reckoner", *QUICK, "--concurrency", "4", "--input", tmp_path / "mixed.npz", "--rows", "1"
    )
    (step,) = figures["steps"]
    assert step["answered"] > 0
    assert step["errors"] == step["errors_by_reason"]["model_error"]["count"] > 0
    assert step["refused"] == 0
    assert "a negative number" in text


def test_slo_finds_the_highest_rate_within_an_objective(daemon: Running, tmp_path: Path) -> None:
    done = bench(
        *("--endpoint", daemon.endpoint, "sleeper", "--shape", "x:1,4", "--json", tmp_path / "figures.json"),
        *("--slo", "150ms", "--seconds", "1.5", "--warmup", "0.2", "--steps", "5", "--timeout", "2"),
    )
    figures = json.loads((tmp_path / "figures.json").read_text())
    objective = figures["objective"]
    assert figures["complete"]
    assert 1 <= len(objective["tried"]) <= 5
    assert [step["loop"] for step in figures["steps"]] == ["closed", *["open"] * len(objective["tried"])]
    held = [each["rate"] for each in objective["tried"] if each["held"]]
    # Two workers answer 100 a second. In 1.5 s, random arrivals at twice that rate never happen to be so few.
    assert all(rate < 200 for rate in held)
    assert objective["highest_rate"] == max(held, default=None)
    if held:
        assert done.returncode == Exit.OK
        assert "Highest rate with p99 within 150 ms" in done.stdout
    else:
        assert done.returncode == 1
        assert "No rate held" in done.stdout


def test_the_exit_code_is_1_if_no_rate_meets_the_objective(daemon: Running) -> None:
    # A request takes 20 ms at any rate.
    done = bench(
        *("--endpoint", daemon.endpoint, "sleeper", "--shape", "x:1,4", *QUICK, "--slo", "5ms", "--steps", "2"),
        *("--concurrency", "2"),
    )
    assert done.returncode == 1
    assert "No rate held p99 within 5.00 ms" in done.stdout


def test_a_daemon_that_is_killed_shows_as_errors(tmp_path: Path) -> None:
    with Running(tmp_path, CONFIG) as running:
        running.wait_ready()
        process = begin(
            *("--endpoint", running.endpoint, "sleeper", "--shape", "x:1,4", "--timeout", "2"),
            *("--concurrency", "4,4", "--seconds", "1.5", "--warmup", "0", "--json", str(tmp_path / "figures.json")),
        )
        with process:
            wait_for_words(process, "outstanding:")
            running.process.kill()
            out, err = process.communicate(timeout=STEP_S)
    assert process.returncode == Exit.OK, err
    _, step = json.loads((tmp_path / "figures.json").read_text())["steps"]
    assert step["errors"] > 0
    assert set(step["errors_by_reason"]) <= {"connection_lost", "not_listening"}
    assert "requests without an answer: " in out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nobody"], 1, "NOT_FOUND/model_unknown: there is no model 'nobody'"),
        ([], 1, "name one of the models: declared, reckoner, sleeper, narrow"),
        (["sleeper"], 1, "declares no inputs"),
        (["declared", "--shape", "x:1,4"], 1, "takes the shape [-1, 3]"),
        (["declared", "--input", "none.npz"], 1, "none.npz: No such file"),
        (["reckoner", "--shape", "x:1,7"], 1, "rows of 7 numbers; check the inputs"),
        (["declared", "--json", "no/such/folder", *QUICK, "--concurrency", "1"], 1, "no/such/folder: No such file"),
    ],
)
def test_an_error_before_measuring_is_one_line(
    arguments: list[str], code: int, words: str, daemon: Running, tmp_path: Path
) -> None:
    done = refused("--endpoint", daemon.endpoint, *arguments, folder=tmp_path)
    assert done.exit_code == code
    assert words in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_no_daemon_is_one_line_and_its_own_exit_code(tmp_socket: str) -> None:
    done = bench("--endpoint", tmp_socket, "m", "--timeout", "0.2")
    assert (done.returncode, done.stdout) == (Exit.UNAVAILABLE, "")
    assert done.stderr.count("\n") == 1
    assert "no daemon listens at" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["m", "--concurrency", "0"], "'0' is not a whole number greater than 0"),
        (["m", "--concurrency", "1,x"], "'x' is not a whole number"),
        (["m", "--rate", "nan"], "'nan' is not a number greater than 0"),
        (["m", "--slo", "20"], "needs its unit"),
        (["m", "--slo", "0ms"], "must be greater than 0"),
        (["m", "--slo", "1s"], "--seconds must be at least 10 times --slo"),
        (["m", "--plot", "x.pdf"], ".svg or .png"),
        (["m", "--shape", "x"], "as in x:1,224,224,3"),
        (["m", "--input", "x.npy"], ".npz"),
        (["m", "--input", "x.npz", "--shape", "x:1"], "those of --input have their shapes in the file"),
        (["m", "--workers", "2"], "--workers belongs to --scaling"),
        (["--scaling", "x.yaml", "--rate", "5"], "takes no --rate"),
        (["--scaling", "x.yaml", "--endpoint", "tcp://127.0.0.1:1"], "takes no --endpoint"),
    ],
)
def test_a_wrong_command_line_is_a_usage_error(arguments: list[str], words: str) -> None:
    done = CliRunner().invoke(commands.multitower, ["bench", *arguments])
    assert (done.exit_code, done.stdout) == (Exit.USAGE, "")
    assert words in " ".join(done.stderr.split())


@pytest.mark.parametrize(("name", "words"), [("no/such.svg", "No such file or directory"), ("a.svg", "Is a dir")])
def test_a_file_that_cannot_be_written_is_found_before_the_load(
    name: str, words: str, tmp_path: Path, tmp_socket: str
) -> None:
    path = tmp_path / name
    (tmp_path / "a.svg").mkdir()
    done = refused("m", "--json", path, "--endpoint", tmp_socket, folder=tmp_path)  # nothing listens there
    assert (done.exit_code, done.stdout) == (1, "")
    assert f"multitower: {path}: {words}" in done.stderr
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.svg"]


@pytest.mark.usefixtures("all_packages")
def test_a_plot_that_cannot_be_written_is_found_before_the_load(tmp_path: Path, tmp_socket: str) -> None:
    path = tmp_path / "no" / "such.svg"
    done = bench("m", "--plot", path, "--endpoint", tmp_socket)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"multitower: {path}: No such file or directory" in done.stderr
    assert list(tmp_path.iterdir()) == []


WITHOUT_MATPLOTLIB = """
import sys
sys.modules["matplotlib"] = None
sys.argv = ["multitower", "bench", "m", "--plot", "x.svg"]
from multitower.cli import main
main()
"""


def test_a_missing_matplotlib_is_reported_before_the_load() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_MATPLOTLIB], capture_output=True, text=True, timeout=STEP_S, check=False
    )
    assert (done.returncode, done.stdout) == (Exit.UNAVAILABLE, "")
    assert "pip install matplotlib" in done.stderr


@pytest.mark.usefixtures("all_packages")
@pytest.mark.parametrize(("suffix", "begins"), [("svg", b"<?xml"), ("png", b"\x89PNG")])
def test_plots_are_written_as_svg_and_png(suffix: str, begins: bytes, daemon: Running, tmp_path: Path) -> None:
    picture = tmp_path / f"figures.{suffix}"
    measured(daemon, tmp_path, "declared", *QUICK, "--concurrency", "1,4", "--rate", "50", "--plot", picture)
    data = picture.read_bytes()
    assert data.startswith(begins)
    if suffix == "svg":
        text = data.decode()
        for words in ("Latency over throughput", "Latency distribution", "4 outstanding", "p99, closed loop"):
            assert words in text


# Processes that a bench starts.


@pytest.fixture
def private(short_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for all temporary files of a bench, which also occurs in the command lines of its processes."""
    monkeypatch.setenv("TMPDIR", str(short_folder))
    return short_folder


@pytest.fixture
def config(tmp_path: Path) -> Path:
    copy_handlers(tmp_path)
    path = tmp_path / "config.yaml"
    model = '{name: m, handler: "handlers:Sleeper", parameters: {seconds: 0.02}}'
    path.write_text(f"listen: ['ipc://{tmp_path}/none.sock']\ndevices: {{cpu: 2}}\nmodels: [{model}]\n")
    return path


def begin(*arguments: str | Path) -> subprocess.Popen[str]:
    """Starts a bench in a process group of its own, as a terminal does."""
    return subprocess.Popen(
        [sys.executable, "-m", "multitower", "bench", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )


def wait_for_words(process: subprocess.Popen[str], words: str) -> None:
    """Reads stderr until a line contains these words."""
    assert process.stderr is not None
    for line in process.stderr:
        if words in line:
            return
    raise AssertionError(f"the bench ended without {words!r}")


def left(private: Path) -> list[str]:
    """Running processes of a bench: those with the private folder in their arguments or environment."""
    found = []
    for process in psutil.process_iter(["cmdline", "environ"]):
        where = [*(process.info["cmdline"] or ()), (process.info["environ"] or {}).get("TMPDIR", "")]
        if process.pid != os.getpid() and any(str(private) in part for part in where):
            found.append(" ".join(process.info["cmdline"] or ()))
    return found


def test_scaling_measures_each_number_of_workers(config: Path, private: Path, tmp_path: Path) -> None:
    done = bench(
        *("--scaling", config, "--shape", "x:1,4", "--workers", "2,1", "--concurrency", "2,8"),
        *("--seconds", "1", "--warmup", "0.2", "--json", tmp_path / "figures.json"),
    )
    assert done.returncode == Exit.OK, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    one, two = figures["scaling"]
    assert (one["workers"], two["workers"]) == (1, 2)
    assert one["efficiency"] == 1.0
    # Each worker answers one request in 20 ms; a step may last a little longer than its second.
    assert 0 < one["requests_per_s"] <= 53
    assert 0 < two["requests_per_s"] <= 105
    assert two["efficiency"] == pytest.approx(two["requests_per_s"] / (2 * one["requests_per_s"]))
    assert [step["workers"] for step in figures["steps"]] == [1, 1, 2, 2]
    assert "Efficiency" in done.stdout
    assert left(private) == []
    assert list(private.iterdir()) == []


def test_scaling_finds_saturation_by_itself(config: Path, private: Path, tmp_path: Path) -> None:
    done = bench(
        *("--scaling", config, "--shape", "x:1,4", "--workers", "1", *QUICK, "--json", tmp_path / "figures.json")
    )
    assert done.returncode == Exit.OK, done.stderr
    steps = json.loads((tmp_path / "figures.json").read_text())["steps"]
    assert [step["amount"] for step in steps] == [4 << number for number in range(len(steps))]
    assert len(steps) > 1


@pytest.mark.parametrize(
    ("change", "arguments", "code", "words"),
    [
        ("models:", ["--workers", "1"], Exit.CONFIG, "models"),
        ("workers_per_device: 2\n", ["--workers", "3"], 1, "3 workers cannot be made of devices with 2 each"),
        ("spares: 0\n", ["--workers", "1", "nobody"], 1, "there is no model 'nobody'"),
    ],
)
def test_scaling_reports_what_it_cannot_measure(
    change: str, arguments: list[str], code: int, words: str, config: Path, private: Path
) -> None:
    config.write_text(config.read_text() + change)
    done = bench("--scaling", config, "--shape", "x:1,4", *arguments)
    assert done.returncode == code
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert left(private) == []


def test_a_daemon_that_cannot_serve_is_reported_and_ended(config: Path, private: Path) -> None:
    config.write_text(config.read_text().replace("Sleeper", "Broken") + "restart: {max_restarts: 0}\n")
    done = bench("--scaling", config, "--shape", "x:1,4", "--workers", "1")
    assert done.returncode == 1
    assert "the weights are missing" in done.stderr
    assert left(private) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_daemon_and_ctrl_c_prints_the_results(
    number: signal.Signals, config: Path, private: Path, tmp_path: Path
) -> None:
    with begin(
        *("--scaling", config, "--shape", "x:1,4", "--workers", "2", "--concurrency", "2,4", "--processes", "2"),
        *("--seconds", "1", "--warmup", "0.1", "--json", tmp_path / "figures.json"),
    ) as process:
        wait_for_words(process, "2 outstanding:")
        os.killpg(process.pid, number)
        out, err = process.communicate(timeout=STEP_S)
    assert process.returncode == 128 + number
    assert "Traceback" not in err
    assert left(private) == []
    assert list(private.iterdir()) == []
    if number == signal.SIGINT:
        assert "2 outstanding" in out
        figures = json.loads((tmp_path / "figures.json").read_text())
        assert not figures["complete"]
        assert len(figures["steps"]) == 1


def test_no_process_outlives_a_killed_bench(config: Path, private: Path) -> None:
    with begin(
        *("--scaling", config, "--shape", "x:1,4", "--workers", "1", "--concurrency", "4", "--seconds", "60"),
        *(
            "--processes",
            "2",
        ),
    ) as process:
        wait_for_words(process, "asking m")
        process.kill()
        process.communicate(timeout=STEP_S)
    wait_for(lambda: left(private), operator.not_)
