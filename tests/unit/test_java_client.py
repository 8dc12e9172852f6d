"""What the Java client shares with the package, and only a program would notice to differ."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from xml.etree import ElementTree

from multitower.errors import CODE_OF, ConnectError, Reason

ROOT = Path(__file__).parents[2]
JAVA = ROOT / "clients" / "java"
SOURCES = JAVA / "src" / "main" / "java" / "io" / "github" / "multitower" / "client"
POM = ElementTree.parse(JAVA / "pom.xml").getroot()


def of_pom(name: str) -> str | None:
    return POM.findtext(f"{{http://maven.apache.org/POM/4.0.0}}{name}")


def test_it_has_the_version_of_the_package() -> None:
    assert of_pom("version") == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_the_guide_quotes_the_coordinates_of_the_pom() -> None:
    quoted = re.findall(r"<(groupId|artifactId|version)>(.*?)</", (ROOT / "docs" / "java.md").read_text())
    assert set(quoted) == {(name, of_pom(name)) for name in ("groupId", "artifactId", "version")}


OF_ORDERS = {
    Reason.RELOAD_IN_PROGRESS,
    Reason.TOO_MANY_ORDERS,
    Reason.CONFIG_REFUSED,
    Reason.SLOT_UNKNOWN,
    Reason.SLOT_EMPTY,
    Reason.ORDER_FAILED,
}
"""Reasons of orders to the daemon's control endpoint, which the Java client does not use."""


def test_it_knows_every_reason_of_a_request_with_its_code() -> None:
    source = (SOURCES / "Reason.java").read_text()
    reasons = dict(re.findall(r'^    ([A-Z_]+)\("([A-Z_]+)"\)', source, re.MULTILINE))
    assert {name.lower(): code for name, code in reasons.items()} == {
        str(key): str(CODE_OF[key]) for key in set(CODE_OF) - OF_ORDERS
    }


def test_it_names_causes_of_failed_connections_as_the_python_client_does() -> None:
    source = "".join((SOURCES / name).read_text() for name in ("Reachability.java", "KeyErrors.java"))
    named = set(re.findall(r'"([a-z]+(?:_[a-z]+)*)"', source)) - {"connect_error"}
    not_over_tcp = {ConnectError.NO_SUCH_FILE, ConnectError.NOT_A_SOCKET, ConnectError.ENDPOINT_MALFORMED}
    not_over_tcp.add(ConnectError.KEY_MALFORMED)  # an IllegalArgumentException, as for an endpoint
    not_told_apart = {ConnectError.NO_SOCKET}  # java.net reports it in words of the system only
    assert named == {kind.value for kind in set(ConnectError) - not_over_tcp - not_told_apart}
