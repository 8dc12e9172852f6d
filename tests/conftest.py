from __future__ import annotations

import pytest
from fake_gpus import FakeGpus, build_fakes
from hypothesis import HealthCheck, settings

# How long an example takes says nothing where other tests, and others' programs, have the cores meanwhile.
settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared")


@pytest.fixture(scope="session")
def fake_gpus(tmp_path_factory: pytest.TempPathFactory) -> FakeGpus:
    """Stand-ins for NVIDIA's libraries, compiled once; `.environment(log_file)` lets a subprocess use them."""
    return FakeGpus(build_fakes(tmp_path_factory.mktemp("fake_gpus")))
