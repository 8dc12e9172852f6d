"""How the file descriptors of a daemon are divided."""

from __future__ import annotations

import resource

import pytest

from multitower.supervisor.machine.descriptors import (
    BURST,
    DAEMON,
    ENOUGH,
    PER_PROCESS,
    REGIONS,
    plan_descriptors,
    plan_gateway_descriptors,
    wanted_limit,
)


@pytest.mark.parametrize("limit", [80, 100, 120, 200, 256, 500, 1024, 1500, 1700, 2048, 4096, 20000, 65536, 1 << 20])
@pytest.mark.parametrize("processes", [1, 2, 8])
@pytest.mark.parametrize("shares_memory", [False, True])
def test_the_parts_are_never_more_than_the_limit(limit: int, processes: int, shares_memory: bool) -> None:
    plan = plan_descriptors(limit, processes, None, shares_memory=shares_memory)
    assert plan.connections >= 4
    assert plan.needed == DAEMON + PER_PROCESS * processes
    if plan.needed + 64 < limit:
        assert plan.needed + plan.regions + plan.connections + min(plan.burst, BURST) <= limit
        assert plan.burst > 0


def test_where_there_are_enough_the_rest_survives_any_burst() -> None:
    plan = plan_descriptors(4096, 2, None, shares_memory=True)
    assert plan.survives_bursts
    assert plan.regions == REGIONS
    assert plan.connections == 4096 - plan.needed - REGIONS - BURST
    assert not plan_descriptors(1024, 2, None, shares_memory=True).survives_bursts


def test_max_connections_is_the_most_that_are_open() -> None:
    assert plan_descriptors(4096, 2, 10, shares_memory=True).connections == 10
    assert plan_descriptors(4096, 2, 1_000_000, shares_memory=True).connections < 4096 - BURST
    assert plan_descriptors(1024, 2, 100, shares_memory=False).connections == 100


@pytest.mark.parametrize(
    ("soft", "hard", "connections", "wanted"),
    [
        (1024, 4096, None, 4096),
        (1024, 1 << 20, None, ENOUGH),
        (1024, resource.RLIM_INFINITY, None, ENOUGH),
        (200_000, 200_000, None, 200_000),
        (1024, 1024, 5000, 1024),
    ],
)
def test_the_soft_limit_is_raised_as_far_as_is_useful(
    soft: int, hard: int, connections: int | None, wanted: int
) -> None:
    assert wanted_limit(soft, hard, 2, connections) == wanted


def test_the_soft_limit_is_raised_further_for_max_connections() -> None:
    wanted = wanted_limit(1024, 1 << 20, 2, 300_000)
    plan = plan_descriptors(wanted, 2, 300_000, shares_memory=True)
    assert (plan.connections, plan.survives_bursts) == (300_000, True)


@pytest.mark.parametrize(
    ("limit", "threads", "plan"),
    [
        (1 << 20, 1, (128, (1 << 20) - 128)),
        (1024, 4, (176, 848)),
        (1024, 1000, (512, 512)),
        (1, 1, (0, 1)),
        (0, 1, (0, 1)),
    ],
)
def test_the_gateway_keeps_some_descriptors_and_at_most_half(limit: int, threads: int, plan: tuple[int, int]) -> None:
    """The same cases as in `descriptor_limit.rs`."""
    assert plan_gateway_descriptors(limit, threads) == plan
