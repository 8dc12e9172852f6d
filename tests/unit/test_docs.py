"""The documentation names only files, pages and headings that exist."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from pages import PAGES, ROOT, blocks, headings, links, name_of, programs, quoted, site_slug, slug
from ruamel.yaml import YAML

CODE = (".py", ".md", ".c", ".java", ".service", ".toml")
"""A name that ends in one of these is a file of the repository, unless the page shows that file in a block."""
FOLDERS = ("", "supervisor", "worker", "multitower", "tests", "clients/java")
"""What a path may be relative to, besides its page."""
GENERATED = {".git", ".venv", "__pycache__", "build", "demo", "dist", "target"}


@cache
def files() -> frozenset[str]:
    """Every file and folder of the repository, relative to it."""
    found = set()
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [name for name in folders if name not in GENERATED and not name.endswith((".egg-info", "_cache"))]
        here = Path(folder).relative_to(ROOT)
        found.update(str(here / name) for name in (*folders, *names))
    return frozenset(found)


@cache
def roots() -> frozenset[str]:
    return frozenset(name for name in files() if "/" not in name and (ROOT / name).is_dir())


def is_path(word: str) -> bool:
    """Whether a word names a file or folder of the repository, right or wrong."""
    if not re.fullmatch(r"[\w.*][\w./*-]*", word) or "…" in word:
        return False
    return word.endswith(CODE) or ("/" in word and word.partition("/")[0] in roots())


def exists(page: Path, word: str) -> bool:
    if "/" not in word and "*" not in word:
        return any(Path(name).name == word for name in files())
    folders = [page.parent, *(ROOT / folder for folder in FOLDERS)]
    return any(next(folder.glob(word.rstrip("/")), None) is not None for folder in folders)


def words(page: Path) -> Iterator[tuple[int, str]]:
    """Every word in code of a page: between backticks, and in the blocks that are commands."""
    yield from ((line, word) for line, text in quoted(page) for word in text.split())
    for block in blocks(page):
        if block.language == "sh":
            yield from ((block.line, word) for word in block.text.split())


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_paths_exist(page: Path) -> None:
    for line, word in words(page):
        path = word.strip("\"'(),;:").partition("#")[0].partition("::")[0]
        if is_path(path) and path not in programs(page):
            assert exists(page, path), f"{name_of(page)}:{line} names {path}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_names_stand_in_the_files_that_are_named_with_them(page: Path) -> None:
    text = page.read_text()
    for name, path in re.findall(r"`([A-Za-z_][\w.]*)`\s+(?:in|of)\s+`([\w./-]+\.py)`", text):
        file = next(ROOT / folder / path for folder in FOLDERS if (ROOT / folder / path).exists())
        for part in name.split("."):
            assert re.search(rf"\b{part}\b", file.read_text()), f"{name_of(page)}: {path} has no {name}"


def anchors(page: Path) -> set[str]:
    return {slug(heading) for heading in headings(page)}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for link in links(page):
        target = (page.parent / link.target).resolve() if link.target else page
        assert target.is_relative_to(ROOT), f"{link} leaves the repository: {link.target}"
        # A folder is a page on a forge, but not on the site.
        assert target.is_file(), f"{link} links to {link.target}, which is no file"
        if link.anchor:
            assert link.anchor in anchors(target), f"{link} links to #{link.anchor} of {name_of(target)}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_headings_have_the_same_anchor_on_a_forge_and_on_the_site(page: Path) -> None:
    assert len(anchors(page)) == len(headings(page)) or page.name == "CHANGELOG.md", "a heading stands twice"
    for heading in headings(page):
        assert slug(heading) == site_slug(heading), heading


def nav(entries: list[dict[str, object]]) -> Iterator[str]:
    for entry in entries:
        for value in entry.values():
            if isinstance(value, list):
                yield from nav(value)
            else:
                yield str(value)


def test_the_site_has_every_page_once() -> None:
    site = YAML(typ="safe", pure=True).load((ROOT / "mkdocs.yml").read_text())
    assert sorted(nav(site["nav"])) == sorted(map(name_of, PAGES))


def test_the_readme_is_short_and_has_the_picture() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) < 150
    assert "](docs/images/status.svg)" in text
    assert "url(" not in re.sub(r"url\(#", "", (ROOT / "docs" / "images" / "status.svg").read_text())


def sources() -> list[Path]:
    """The files that may name pages: code, configurations, units, scripts."""
    suffixes = {".py", ".c", ".java", ".yaml", ".service", ".toml", ".yml", ".md", ""}
    paths = [ROOT / name for name in sorted(files())]
    return [path for path in paths if path.suffix in suffixes and path.is_file() and not path.is_symlink()]


def test_the_code_names_pages_and_headings_that_exist() -> None:
    pattern = re.compile(r"(?<![\w./-])docs/([\w.-]+\.(?:md|json|svg))(?:#([\w-]+))?")
    found = 0
    for path in sources():
        if path == Path(__file__):
            continue
        for name, anchor in pattern.findall(path.read_text(errors="replace")):
            found += 1
            page = ROOT / "docs" / name
            assert page.exists(), f"{name_of(path)} names docs/{name}"
            assert not anchor or anchor in anchors(page), f"{name_of(path)} names docs/{name}#{anchor}"
    assert found > 20


def test_the_programs_name_pages_by_their_titles() -> None:
    titles = {headings(page)[0] for page in PAGES}
    named = [
        title
        for path in (ROOT / "multitower").rglob("*.py")
        for call in re.findall(r"documentation\.page\(([^()]*)\)", path.read_text())
        for title in re.findall(r"[\"']([A-Z][^\"']*)[\"']", call)
    ]
    assert named
    assert set(named) <= titles


def test_log_messages_that_operators_look_for_are_in_the_code() -> None:
    section = (ROOT / "docs" / "operating.md").read_text().partition("## Read the log")[2]
    messages = [
        text for cells in re.findall(r"^\| (`.*?) \|", section, re.MULTILINE) for text in re.findall("`(.*?)`", cells)
    ]
    code = "".join(path.read_text() for name in ("supervisor", "worker") for path in (ROOT / name).rglob("*.py"))
    assert len(messages) > 10
    assert [message for message in messages if f'"{message}"' not in code] == []


def test_generated_pages_are_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("docs_script", ROOT / "scripts" / "docs.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    for path, text in script.generate().items():
        assert path.read_text() == text, f"run `make docs`: {path.name} differs from the code"


def test_every_target_of_the_menu_exists() -> None:
    menu = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True).stdout
    listed = re.findall(r"^  make (\S+)", menu, re.MULTILINE)
    assert {"demo", "test", "test-unit", "test-chaos", "lint", "format", "bench", "docs"} <= set(listed)
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(listed) <= set(targets)
