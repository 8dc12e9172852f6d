"""A GPU that disappears under a running daemon, and comes back; the GPUs are stand-ins for the driver's libraries."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
from fake_gpus import UUIDS, FakeGpus, set_gpus
from running import STEP_S, Running, multitower

from multitower import Client, Unavailable

pytestmark = pytest.mark.chaos

CONFIG = """
listen: ["{endpoint}"]
devices: [1, 2]
spares: 0
heartbeat: 100ms
models:
  - {name: m, handler: "handlers:Cuda"}
"""


class Gpus:
    """What NVML and CUDA say, in the daemon and in its workers."""

    def __init__(self, fake_gpus: FakeGpus, folder: Path) -> None:
        self._nvml, self._cuda = folder / "nvml", folder / "cuda"
        self.environment = fake_gpus.environment(file=str(self._nvml)) | {"FAKE_CUDA_GONE": str(self._cuda)}

    def lose(self, number: int) -> None:
        self._cuda.write_text(UUIDS[number])
        set_gpus(self._nvml, lost=number)

    def find(self) -> None:
        self._cuda.unlink()
        set_gpus(self._nvml)


@pytest.fixture
def gpus(fake_gpus: FakeGpus, tmp_path: Path) -> Gpus:
    return Gpus(fake_gpus, tmp_path)


def infer(client: Client, times: int = 20) -> None:
    for future in [client.submit("m", {"x": np.array([number])}) for number in range(times)]:
        future.result(STEP_S)


def present(client: Client) -> list[bool | None]:
    return [slot["device_present"] for slot in client.status()["slots"]]


@pytest.mark.parametrize("how", ["noticed", "killed"])
def test_a_lost_device_fails_its_slot_until_it_is_back_and_the_others_serve(
    tmp_path: Path, gpus: Gpus, how: str
) -> None:
    with (
        Running(tmp_path, CONFIG, environment=gpus.environment) as daemon,
        daemon.wait_ready().client() as client,
    ):
        daemon.wait(lambda: present(client) == [True, True])
        pid = client.status()["slots"][0]["pid"]
        if how == "killed":
            # As by the driver, or by CUDA's own abort.
            gpus.lose(1)
            os.kill(pid, signal.SIGKILL)
        else:
            # Its calls would go on and fail: the daemon ends it.
            gpus.lose(1)
            daemon.wait_line("worker lost its device", slot=0, pid=pid, device=UUIDS[1])
            assert daemon.wait_line("worker died", slot=0)["cause"] == "killed because its device is gone"
        daemon.wait_line("device is gone", device=UUIDS[1])
        cause = f"m: RuntimeError: CUDA error 100 on {UUIDS[1]}: no CUDA-capable device"
        assert daemon.wait_line("slot failed", slot=0)["cause"].startswith(cause)
        infer(client)
        daemon.wait(lambda: present(client) == [False, True])
        failed, serving = client.status()["slots"]
        assert failed["state"] == "failed"
        assert failed["last_error"].startswith(cause)
        assert (serving["state"], serving["incarnation"]) == ("ready", 1)
        ready = client.server_ready()
        assert (ready["ready"], ready["slots_ready"], ready["slots_total"]) == (True, 1, 2)
        done = multitower("status", daemon=daemon)
        assert done.returncode == 1
        assert "gone" in done.stdout
        still = multitower("restart", "0", daemon=daemon)
        assert still.returncode != 0
        assert cause in still.stderr

        gpus.find()
        done = multitower("restart", "0", daemon=daemon)
        assert (done.returncode, done.stderr) == (0, "")
        infer(client)
        # It serves though NVML, which is opened anew every ten seconds, may not know yet that the device is back.
        daemon.wait_line("device is back", device=UUIDS[1])
        daemon.wait(lambda: present(client) == [True, True])
        assert [slot["state"] for slot in client.status()["slots"]] == ["ready", "ready"]
        assert multitower("status", daemon=daemon).returncode == 0
        assert daemon.end() == 0


def test_the_loss_of_the_only_device_ends_the_model_but_not_the_daemon(tmp_path: Path, gpus: Gpus) -> None:
    text = CONFIG.replace("[1, 2]", "[1]")
    with (
        Running(tmp_path, text, environment=gpus.environment) as daemon,
        daemon.wait_ready().client(retries=0) as client,
    ):
        daemon.wait(lambda: present(client) == [True])
        gpus.lose(1)
        daemon.wait_line("slot failed", slot=0)
        with pytest.raises(Unavailable, match="no CUDA-capable device") as raised:
            client.infer("m", {"x": np.zeros(1)})
        assert raised.value.reason == "no_worker"
        assert not client.ready()
        assert multitower("status", daemon=daemon).returncode == 69
        gpus.find()
        assert multitower("restart", "0", daemon=daemon).returncode == 0
        infer(client)
        assert client.ready()
        assert daemon.end() == 0
