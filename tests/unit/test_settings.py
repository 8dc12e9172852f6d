"""What the parts of the daemon are told of a configuration."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
from version_folders import version

from multitower.spec import ModelSpec
from multitower.supervisor import settings
from multitower.supervisor.config import config
from multitower.supervisor.scheduling.pool import Rule
from multitower.supervisor.scheduling.queue import QueueLimits


def made(tmp_path: Path, text: str) -> settings.Settings:
    path = tmp_path / "config.yaml"
    path.write_text("devices: {cpu: 1}\n" + text)
    return settings.make(config.load(path, environment={}))


def test_the_queue_knows_what_batches_are_padded_to(tmp_path: Path) -> None:
    batching = "{max_batch_size: 32, allowed_batch_sizes: [4, 8, 32]}"
    told = made(
        tmp_path,
        f"models: [{{name: m, handler: 'h:M', batching: {batching}}}, {{name: n, handler: 'h:N'}}]",
    )
    assert told.limits["m"].sizes == (4, 8, 32)
    assert told.limits["n"].sizes == ()


@pytest.mark.parametrize(
    ("sizes", "rows", "padded"),
    [((), 5, 5), ((4, 8, 32), 1, 4), ((4, 8, 32), 4, 4), ((4, 8, 32), 5, 8), ((4, 8, 32), 32, 32), ((4, 8), 9, 9)],
)
def test_padding(sizes: tuple[int, ...], rows: int, padded: int) -> None:
    assert QueueLimits(1, 1, sizes=sizes).padded(rows) == padded


def test_models_that_the_start_does_not_load_are_told_apart_and_a_reload_keeps_what_is_loaded(
    tmp_path: Path,
) -> None:
    models = "{name: l, handler: 'h:L'}, {name: m, handler: 'h:M', load_at_startup: false}, {name: n, handler: 'h:N'}"
    told = made(tmp_path, f"models: [{models}]")

    def names(specs: Iterable[ModelSpec]) -> str:
        return "".join(spec.name for spec in specs)

    assert (names(told.worker_settings.models), names(told.unloaded), names(told.models)) == ("ln", "m", "lmn")
    assert told.still_with({"l"}) == told
    loaded = told.still_with({"l", "m"})
    assert (names(loaded.worker_settings.models), loaded.unloaded) == ("lmn", ())
    assert (names(loaded.without("m").worker_settings.models), names(loaded.without("m").unloaded)) == ("ln", "m")


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("", Rule.EARLIEST_FINISH),
        ("dispatch: earliest_finish\n", Rule.EARLIEST_FINISH),
        ("dispatch: least_depth\n", Rule.LEAST_DEPTH),
    ],
)
def test_the_rule_of_dispatch(tmp_path: Path, line: str, rule: Rule) -> None:
    assert made(tmp_path, line + "models: [{name: m, handler: 'h:M'}]").dispatch is rule


def test_each_version_that_is_served_is_a_spec_and_what_is_not_there_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in ("1", "2", "3"):
        version(tmp_path / "m", number)
    keys = "versions: {specific: [1, 3, 4]}, version_labels: {stable: 3, next: 4}"
    told = made(tmp_path, f"models: [{{name: m, path: m, {keys}}}, {{name: n, handler: 'h:N'}}]")
    assert [spec.key for spec in told.worker_settings.models] == [("m", "1"), ("m", "3"), ("n", "1")]
    assert told.labels == {"m": {"stable": "3", "next": "4"}}
    told.warn_of_versions()
    (record,) = caplog.records
    assert record.message == "a version is not there"
    other = told.with_versions("m", {"4": "print"})
    assert [(*spec.key, spec.fingerprint) for spec in other.worker_settings.models] == [
        ("m", "4", "print"),
        ("n", "1", ""),
    ]
    assert other.worker_settings.models[0].max_batch_size == 32, "otherwise the same"
