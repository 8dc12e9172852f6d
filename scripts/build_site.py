"""Builds the documentation as a site in build/site: `make docs`.

The pages stand where readers of the repository look for them: most in docs/, some beside what they describe. This
program copies them, and every file that they link to, into one folder with the same relative paths, lets Zensical build
the site from it in strict mode (mkdocs.yml), and checks every link of the finished site.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pages import PAGES, links

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "build" / "site-source"
SITE = ROOT / "build" / "site"


def collect() -> None:
    """Copies the pages and the files that they link to into `SOURCE`."""
    shutil.rmtree(SOURCE, ignore_errors=True)
    targets = {(page.parent / link.target).resolve() for page in PAGES for link in links(page) if link.target}
    for path in {*PAGES, *targets}:
        copy = SOURCE / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)


class _Page(HTMLParser):
    """The links and anchors of a page of the site."""

    def __init__(self) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.links.update(value for name in ("href", "src") if (value := given.get(name)))
        self.anchors.update(value for name in ("id", "name") if (value := given.get(name)))


def broken_links() -> Iterator[str]:
    """Every link of the site that leads nowhere within it."""
    pages = {}
    for path in SITE.rglob("*.html"):
        pages[path] = _Page()
        pages[path].feed(path.read_text())
    for path, page in pages.items():
        if path.name == "404.html":
            continue  # it is served at any address, with links from the root
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if target.is_dir():
                target /= "index.html"
            anchor = unquote(parts.fragment)
            found = target.is_file() and target.is_relative_to(SITE)
            if not found or (anchor and target in pages and anchor not in pages[target].anchors):
                yield f"{path.relative_to(SITE)}: {link}"


def main() -> int:
    """Builds and checks the site; the exit code."""
    collect()
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict", "--config-file", "mkdocs.yml"]
    if subprocess.run(command, cwd=ROOT, check=False).returncode:
        return 1
    broken = sorted(broken_links())
    for line in broken:
        print(f"broken link: {line}", file=sys.stderr)
    if not broken:
        print(f"built {SITE.relative_to(ROOT)}/index.html")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
