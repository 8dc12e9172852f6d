"""What the parts of the daemon are told of a configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from multitower.supervisor import config, settings
from multitower.supervisor.batching import QueueLimits
from multitower.supervisor.pool import Rule


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
