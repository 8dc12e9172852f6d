"""Reads the documentation: pages, links, headings and code blocks, for its tests and for the site."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / folder / "README.md" for folder in ("benchmarks", "clients/java", "deploy")),
    ]
)
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>[\w-]*)\n(?P<text>.*?)^ *```$", re.MULTILINE | re.DOTALL)
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)


class Block(NamedTuple):
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{name_of(self.page)}:{self.line}"


class Link(NamedTuple):
    """A link of a page; `anchor` is empty where the link has none, `target` where it leads within the page."""

    page: Path
    line: int
    target: str
    anchor: str

    def __str__(self) -> str:
        return f"{name_of(self.page)}:{self.line}"


def name_of(page: Path) -> str:
    """The path of a page, relative to the repository."""
    return str(page.relative_to(ROOT))


@cache
def blocks(page: Path) -> tuple[Block, ...]:
    """The fenced blocks of a page, without their indentation."""
    text = page.read_text()
    found = []
    for match in FENCE.finditer(text):
        indent = len(match["indent"])
        lines = [line[indent:] for line in match["text"].splitlines(keepends=True)]
        line = text.count("\n", 0, match.start("text")) + 1
        found.append(Block(page, line, match["language"], "".join(lines)))
    return tuple(found)


@cache
def programs(page: Path) -> frozenset[str]:
    """The names of the Python programs that a page shows: those in the first line of their docstrings."""
    return frozenset(match[1] for block in blocks(page) if (match := re.match(r'"""(\w+\.py)', block.text)))


@cache
def prose(page: Path) -> str:
    """The text of a page with its fenced blocks and comments made empty, so that line numbers stay."""
    text = page.read_text()
    for pattern in (FENCE, COMMENT):
        text = pattern.sub(lambda match: "\n" * match[0].count("\n"), text)
    return text


@cache
def quoted(page: Path) -> tuple[tuple[int, str], ...]:
    """What stands between backticks in the prose of a page, with the number of its line."""
    text = prose(page)
    return tuple(
        (text.count("\n", 0, match.start()) + 1, " ".join(match[1].split()))
        for match in re.finditer(r"(?<!`)`([^`]+)`(?!`)", text)
    )


@cache
def links(page: Path) -> tuple[Link, ...]:
    """The links and pictures of a page that lead into the repository."""
    text = re.sub(r"(?<!`)`[^`]+`(?!`)", lambda match: "`" + "." * (len(match[0]) - 2) + "`", prose(page))
    found = []
    for match in re.finditer(r"\]\(([^)\s]+)\)", text):
        if not match[1].startswith(("http://", "https://", "mailto:")):
            target, _, anchor = match[1].partition("#")
            found.append(Link(page, text.count("\n", 0, match.start()) + 1, target, anchor))
    return tuple(found)


def slug(heading: str) -> str:
    """The anchor that the forges make of a heading."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
    return re.sub(r"[^\w\- ]", "", plain).strip().lower().replace(" ", "-")


def site_slug(heading: str) -> str:
    """The anchor that the site's Markdown makes of a heading."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
    plain = unicodedata.normalize("NFKD", plain).encode("ascii", "ignore").decode()
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())


@cache
def headings(page: Path) -> tuple[str, ...]:
    """The headings of a page, in order."""
    return tuple(match[1].strip() for match in re.finditer(r"^#{1,6} (.+)$", prose(page), re.MULTILINE))


def command_lines(text: str) -> Iterator[str]:
    """The commands of a shell block: continued lines joined, prompts, comments and outputs left out."""
    lines = text.replace("\\\n", " ").splitlines()
    prompted = any(line.startswith("$ ") for line in lines)
    for line in lines:
        if prompted and not line.startswith("$ "):
            continue
        command = re.sub(r"(^|\s)#.*$", "", line.removeprefix("$ ")).strip()
        if command:
            yield command
