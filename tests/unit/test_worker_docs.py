"""The handler that docs/models.md shows does what the page says."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from multitower.errors import InvalidRequest
from multitower.spec import ModelSpec
from multitower.worker.handler import HandlerModel

PAGE = Path(__file__).parents[2] / "docs" / "models.md"


def test_the_example_of_a_handler_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = re.search(r"```python\n(\"\"\"sentiment.*?)```", PAGE.read_text(), re.DOTALL)
    assert found is not None
    (tmp_path / "sentiment.py").write_text(found[1])
    monkeypatch.syspath_prepend(tmp_path)
    parameters = {"good": ["fine", "great"], "bad": ["awful"]}
    model = HandlerModel(ModelSpec(name="sentiment", handler="sentiment:Sentiment", parameters=parameters), ["cpu:0"])
    answer = model.infer({"text": np.array([b"Fine day", b"awful"], object)})
    assert answer["score"].tolist() == [0.5, -1]
    assert answer["verdict"].tolist() == ["good", "bad"]
    with pytest.raises(InvalidRequest, match="empty text"):
        model.infer({"text": np.array([b""], object)})
