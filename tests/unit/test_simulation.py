"""The scheduler in virtual time performs as docs/performance.md says; see benchmarks/simulation.py."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

SOURCE = Path(__file__).parents[2] / "benchmarks" / "simulation.py"
EQUAL, ONE_SLOW = (1.0, 1.0, 1.0, 1.0), (1.0, 1.0, 1.0, 4.0)


@pytest.fixture(scope="module")
def simulation() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("simulation", SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["simulation"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["simulation"]


@pytest.mark.parametrize("rate", [400, 1500])
@pytest.mark.parametrize(("hop_s", "noise"), [(0.0, 0.0), (0.0002, 0.1)], ids=["ideal", "hops and noise"])
def test_one_slow_device_of_four_hardly_adds_latency(
    simulation: ModuleType, rate: int, hop_s: float, noise: float
) -> None:
    world = simulation.World(ONE_SLOW, rate, 4000 / rate, hop_s, noise)
    ours, shortest = simulation.Product(world).measure(), simulation.ShortestQueue(world).measure()
    assert ours.p99 <= shortest.p99 / 3
    assert ours.p50 <= 1.02 * shortest.p50
    assert ours.last_share < 0.02


@pytest.mark.parametrize(("hop_s", "noise"), [(0.0, 0.0), (0.0002, 0.1)], ids=["ideal", "hops and noise"])
def test_equal_devices_gain_from_late_binding(simulation: ModuleType, hop_s: float, noise: float) -> None:
    world = simulation.World(EQUAL, 1500, 4.0, hop_s, noise)
    ours, shortest = simulation.Product(world).measure(), simulation.ShortestQueue(world).measure()
    assert ours.p50 <= 0.72 * shortest.p50
    assert ours.p99 <= shortest.p99
    assert 0.2 < ours.last_share < 0.3


def test_near_the_limit_prefetch_hides_the_way_to_the_device(simulation: ModuleType) -> None:
    world = simulation.World(EQUAL, 24_000, 0.5, 0.0004, 0.05)
    ours, plain = simulation.Product(world).measure(), simulation.LeastDepth(world).measure()
    assert ours.p50 < 0.95 * plain.p50
    assert ours.p99 < plain.p99


def test_under_overload_the_slow_device_does_its_part(simulation: ModuleType) -> None:
    world = simulation.World(ONE_SLOW, 30_000, 0.5, 0.0002, 0.05)
    outcome = simulation.Product(world).measure()
    # Its speed is 1 part in 13 of all.
    assert 0.7 / 13 < outcome.last_share < 1.3 / 13
