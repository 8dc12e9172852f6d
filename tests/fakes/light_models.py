"""A package whose SavedModels need no TensorFlow, for tests of many workers that follow their versions.

A start of TensorFlow costs more than the rest of such a test. All but the one file that loads a SavedModel is the
package as it is; tests/tensorflow has the same with TensorFlow's models.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import multitower

MODULE = '''
"""SavedModels whose weights are a number in a file."""

from __future__ import annotations

from pathlib import Path

from multitower.spec import ONLY_VERSION, TensorReport

from ..model_errors import LoadError
from .model import BaseModel


def load(spec, _devices):
    return Times(Path(spec.path, spec.version or ""), spec.version or ONLY_VERSION)


class Times(BaseModel):
    """Multiplies by the number."""

    def __init__(self, folder, version):
        file = folder / "variables" / "variables.data-00000-of-00001"
        try:
            self._factor = int(file.read_text())
        except ValueError as error:
            raise LoadError(f"{file} is no number: {error}") from None
        super().__init__(
            inputs=(TensorReport(name="x", datatype="INT64", shape=(-1, 1)),),
            outputs=(TensorReport(name="x", datatype="INT64", shape=(-1, 1)),),
            version=version,
        )

    def infer(self, inputs):
        return {"x": inputs["x"] * self._factor}
'''


def make_package(folder: Path) -> Mapping[str, str]:
    """Writes the package; returns the variables with which a daemon runs it."""
    package = folder / "multitower"
    # From the checkout or, where the tests run on a wheel, from there; with the files behind the links.
    shutil.copytree(Path(multitower.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    table = package / "format_registry.py"
    before, after = table.read_text().split('    name="saved_model",\n')
    light = "    uses_tensorflow=False,\n    has_towers=False,\n"
    table.write_text(f'{before}    name="saved_model",\n{light}{after}')
    (package / "worker" / "formats" / "saved_model.py").write_text(MODULE)
    # Safe: `python -m` would look into the checkout first.
    return {"PYTHONPATH": str(folder), "PYTHONSAFEPATH": "1"}


def write_model(folder: Path, factor: int | str) -> None:
    """Writes a model that multiplies by a number; or one that cannot be loaded, of any other text."""
    (folder / "variables").mkdir(parents=True)
    (folder / "variables" / "variables.data-00000-of-00001").write_text(str(factor))
    (folder / "saved_model.pb").write_text("its graph is always the same")
