"""The settings that the daemon's parts get from a configuration."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
from version_folders import version

from multitower.spec import ModelSpec
from multitower.supervisor.config.loading import load
from multitower.supervisor.scheduling.pool import Rule
from multitower.supervisor.scheduling.queue import QueueLimits
from multitower.supervisor.settings import Settings, build_settings


def settings_of(tmp_path: Path, text: str) -> Settings:
    path = tmp_path / "config.yaml"
    path.write_text("devices: {cpu: 1}\n" + text)
    return build_settings(load(path, environment={}))


def test_the_queue_limits_contain_the_allowed_batch_sizes(tmp_path: Path) -> None:
    batching = "{max_batch_size: 32, allowed_batch_sizes: [4, 8, 32]}"
    settings = settings_of(
        tmp_path,
        f"models: [{{name: m, handler: 'h:M', batching: {batching}}}, {{name: n, handler: 'h:N'}}]",
    )
    assert settings.limits["m"].sizes == (4, 8, 32)
    assert settings.limits["n"].sizes == ()


@pytest.mark.parametrize(
    ("sizes", "rows", "padded"),
    [((), 5, 5), ((4, 8, 32), 1, 4), ((4, 8, 32), 4, 4), ((4, 8, 32), 5, 8), ((4, 8, 32), 32, 32), ((4, 8), 9, 9)],
)
def test_rows_are_padded_to_the_next_allowed_batch_size(sizes: tuple[int, ...], rows: int, padded: int) -> None:
    assert QueueLimits(1, 1, sizes=sizes).padded(rows) == padded


def test_models_not_loaded_at_startup_stay_unloaded_until_kept_loaded(tmp_path: Path) -> None:
    models = "{name: l, handler: 'h:L'}, {name: m, handler: 'h:M', load_at_startup: false}, {name: n, handler: 'h:N'}"
    settings = settings_of(tmp_path, f"models: [{models}]")

    def names(specs: Iterable[ModelSpec]) -> str:
        return "".join(spec.name for spec in specs)

    assert (names(settings.worker_settings.models), names(settings.unloaded)) == ("ln", "m")
    assert names(settings.models) == "lmn"
    assert settings.keeping_loaded({"l"}) == settings
    loaded = settings.keeping_loaded({"l", "m"})
    assert (names(loaded.worker_settings.models), loaded.unloaded) == ("lmn", ())
    without = loaded.with_model_unloaded("m")
    assert (names(without.worker_settings.models), names(without.unloaded)) == ("ln", "m")


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("", Rule.EARLIEST_FINISH),
        ("dispatch: earliest_finish\n", Rule.EARLIEST_FINISH),
        ("dispatch: least_depth\n", Rule.LEAST_DEPTH),
    ],
)
def test_dispatch_selects_the_rule_and_defaults_to_earliest_finish(tmp_path: Path, line: str, rule: Rule) -> None:
    assert settings_of(tmp_path, line + "models: [{name: m, handler: 'h:M'}]").dispatch is rule


def test_each_served_version_has_a_spec_and_missing_ones_are_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in ("1", "2", "3"):
        version(tmp_path / "m", number)
    keys = "versions: {specific: [1, 3, 4]}, version_labels: {stable: 3, next: 4}"
    settings = settings_of(tmp_path, f"models: [{{name: m, path: m, {keys}}}, {{name: n, handler: 'h:N'}}]")
    assert [spec.key for spec in settings.worker_settings.models] == [("m", "1"), ("m", "3"), ("n", "1")]
    assert settings.labels == {"m": {"stable": "3", "next": "4"}}
    settings.warn_about_missing_versions()
    (record,) = caplog.records
    assert record.message == "configured version not found"
    other = settings.with_versions("m", {"4": "print"})
    assert [(*spec.key, spec.fingerprint) for spec in other.worker_settings.models] == [
        ("m", "4", "print"),
        ("n", "1", ""),
    ]
    assert other.worker_settings.models[0].max_batch_size == 32, "the rest of the specification is unchanged"
