"""A worker with TensorFlow as a process: TensorFlow is imported early, and set up when there is work."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from worker_child import WorkerChild, assignment

from multitower.spec import ModelSpec
from multitower.worker_wire import KeySpec

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # TensorFlow's own, at its import
    import tensorflow as tf

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

HANDLERS = """
import os


class Told:
    def load(self, devices, parameters):
        pass

    def infer(self, inputs):
        import tensorflow as tf

        threads = tf.config.threading
        return {
            "threads": [threads.get_intra_op_parallelism_threads(), threads.get_inter_op_parallelism_threads()],
            "cpus": [device.name for device in tf.config.list_logical_devices("CPU")],
            "cores": sorted({c for t in os.listdir("/proc/self/task") for c in os.sched_getaffinity(int(t))}),
        }
"""


def test_a_spare_has_imported_tensorflow_and_gets_its_work_later(tmp_path: Path) -> None:
    spec = tf.TensorSpec([None, 2], tf.float32, name="x")
    double_it = tf.function(lambda x: {"y": 2 * x}, input_signature=[spec]).get_concrete_function()
    tf.saved_model.save(tf.Module(), str(tmp_path / "double" / "1"), signatures={"serving_default": double_it})
    (tmp_path / "spare_handlers.py").write_text(HANDLERS)
    core = min(os.sched_getaffinity(0))
    work = assignment(
        ModelSpec(name="told", handler="spare_handlers:Told"),
        ModelSpec(name="double", path=str(tmp_path / "double"), version="1", max_batch_size=4),
        ModelSpec(name="absent", path=str(tmp_path / "absent"), version="3", max_batch_size=4),
        devices=("cpu:4", "cpu:5"),
        intra_op_threads=3,
        inter_op_threads=2,
        cores=(core,),
    )
    with WorkerChild(None, import_path=[tmp_path], import_tensorflow=True) as child:
        child.reports("idle")
        assert "libtensorflow" in Path(f"/proc/{child.pid}/maps").read_text()
        child.assign(work)
        told, double, absent = child.reports("ready")[-1].models
        assert (told.platform, double.platform, double.version) == ("python", "tensorflow_savedmodel", "1")
        assert double.max_batch_size == 4
        assert double.unbatched_because is None
        assert double.warmup_s > 0
        assert (absent.state, absent.version) == ("failed", "3")
        assert str(tmp_path / "absent" / "3") in (absent.cause or "")
        asked = KeySpec("told", (("x", "BOOL", ()),), None, False)
        (facts,) = child.result(child.send(asked, {"x": True}, tower=0))
        assert isinstance(facts, dict)
        assert facts["threads"].tolist() == [3, 2]
        assert facts["cpus"].tolist() == [b"/device:CPU:0", b"/device:CPU:1"]
        assert facts["cores"].tolist() == [core]
        key = KeySpec("double", (("x", "FP32", (2,)),), None, True)
        entries = [{"x": np.full((rows, 2), rows, np.float32)} for rows in (1, 2, 1)]
        for entry, answer in zip(entries, child.result(child.send(key, *entries, tower=1)), strict=True):
            assert isinstance(answer, dict)
            assert answer["y"].tolist() == (2 * entry["x"]).tolist()
        assert child.stop() == 0
