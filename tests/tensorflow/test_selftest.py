"""The part of the selftest that serves a TensorFlow model."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from multitower.tools.selftest import tensorflow_check
from multitower.tools.selftest.daemon_checks import Leftovers
from multitower.tools.selftest.results import Outcome, Report
from multitower.tools.selftest.run import make_environment
from multitower.tools.selftest.targets import find_targets
from multitower.tools.selftest.tensorflow_check import TensorFlowCheck

MEMORY = 64 << 20
((TARGET,), _) = find_targets("{cpu: 1}")


def outcomes(report: Report) -> list[tuple[str, Outcome]]:
    return [(result.check, result.outcome) for result in report.results]


def test_a_model_of_tensorflow_is_served_logged_and_nothing_is_left(tmp_path: Path) -> None:
    log = tmp_path / "kept.log"
    log.write_text("of the first daemon\n")
    report = Report(lambda _: None)
    folder = tmp_path / "folder"
    folder.mkdir()
    environment = make_environment(folder)
    with closing(Leftovers([TARGET], folder / "tmp", MEMORY)) as leftovers:
        daemons = TensorFlowCheck([TARGET], MEMORY, folder, environment, log).run(report, leftovers.note_processes)
        assert outcomes(report) == [("tensorflow", Outcome.OK)], report.results
        assert [daemon.exit_code for daemon in daemons] == [0]
        assert "processes that were seen have ended" in leftovers.check_processes(daemons)
        leftovers.check_files(daemons)
    text = log.read_text()
    assert text.startswith("of the first daemon\n")
    assert "worker ready" in text


def test_devices_that_others_need_by_then_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorflow_check, "leave_out_occupied", lambda targets, _: ((), {TARGET: "only 1 MiB is free"}))
    report = Report(lambda _: None)
    daemons = TensorFlowCheck([TARGET], MEMORY, tmp_path, make_environment(tmp_path), None).run(report, lambda: None)
    assert (outcomes(report), daemons) == ([("tensorflow", Outcome.SKIPPED)], [])
    assert report.results[0].detail == "only 1 MiB is free"
