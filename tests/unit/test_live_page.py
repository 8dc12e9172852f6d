"""The page of the gateway is small, loads nothing, and its policy has the hashes of its script and its style sheet."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "gateway" / "src" / "operations"
PAGE = (FOLDER / "page.html").read_text()
POLICY = (FOLDER / "page.rs").read_text()


def test_the_page_has_under_60_kb() -> None:
    assert len(PAGE.encode()) < 60_000


@pytest.mark.parametrize("element", ["script", "style"])
def test_the_policy_has_the_hash_of_each_inline_text(element: str) -> None:
    (text,) = re.findall(rf"<{element}>(.*?)</{element}>", PAGE, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    assert f"{element}-src 'sha256-{digest}'" in POLICY, "page.html has changed: its hash in page.rs must, too"


def test_the_page_loads_nothing_from_elsewhere() -> None:
    addresses = set(re.findall(r"https?://[^\"'`) ]+", PAGE))
    assert addresses == {"http://www.w3.org/2000/svg"}, "names of formats only"


@pytest.mark.parametrize(
    "sink", ["innerHTML", "outerHTML =", "insertAdjacentHTML", "document.write", "eval(", " style="]
)
def test_text_of_the_daemon_cannot_become_markup(sink: str) -> None:
    assert sink not in PAGE


def test_the_page_changes_no_text_into_attributes_of_events() -> None:
    assert not re.search(r"\bon\w+=", PAGE)
