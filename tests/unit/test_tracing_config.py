"""The section `tracing`: what it accepts, what the daemon and doctor find before the first request."""

from __future__ import annotations

import socket
from importlib import util
from pathlib import Path

import pytest
from collector import unused_port

from multitower.supervisor.config.config import Config
from multitower.supervisor.config.loading import load
from multitower.supervisor.config.source import ConfigError
from multitower.supervisor.observability import otlp_exporter
from multitower.supervisor.observability.tracing import why_impossible
from multitower.tools.doctor import tracing


def config(folder: Path, section: str) -> Config:
    file = folder / "config.yaml"
    file.write_text('models: [{name: m, handler: "handlers:Echo"}]\n' + "devices: {cpu: 1}\n" + f"tracing: {section}\n")
    (folder / "handlers.py").touch()
    return load(file, environment={})


@pytest.mark.parametrize(
    ("given", "endpoint"),
    [
        ("grpc://collector", "grpc://collector:4317"),
        ("grpcs://collector:443/", "grpcs://collector:443"),
        ("http://collector:4318", "http://collector:4318/v1/traces"),
        ("http://collector:4318/", "http://collector:4318/v1/traces"),
        ("https://example.com/otlp/v1/traces", "https://example.com/otlp/v1/traces"),
        ("'grpc://[::1]:4317'", "grpc://[::1]:4317"),
    ],
)
def test_endpoints_of_collectors_have_the_usual_defaults(tmp_path: Path, given: str, endpoint: str) -> None:
    section = config(tmp_path, f"{{endpoint: {given}}}").tracing
    assert section is not None
    assert (section.endpoint, section.sample) == (endpoint, 0.01)


@pytest.mark.parametrize(
    ("section", "column", "message"),
    [
        ("{sample: 1}", 10, "endpoint"),
        ("{endpoint: collector:4317}", 21, "must be grpc://HOST:PORT or http://HOST:PORT/v1/traces"),
        ("{endpoint: 4317}", 21, "must be grpc://"),
        ("{endpoint: 'grpc://:4317'}", 21, "must be grpc://"),
        ("{endpoint: 'grpc://a:99999'}", 21, "must be grpc://"),
        ("{endpoint: 'grpc://a/b'}", 21, "must have no path"),
        ("{endpoint: 'http://a/?b=1'}", 21, "must have neither"),
        ("{endpoint: 'http://user:secret@a'}", 21, "must not contain a password"),
        ("{endpoint: 'grpc://a', sample: 1.5}", 41, "1"),
        ("{endpoint: 'grpc://a', sample: -0.1}", 41, "0"),
        ("{endpoint: 'grpc://a', sample: .nan}", 41, ""),
        ("{endpoint: 'grpc://a', sample: true}", 41, ""),
        ("{endpoint: 'grpc://a', rate: 1}", 33, "rate"),
    ],
)
def test_what_is_wrong_is_shown_with_its_line_and_column(
    tmp_path: Path, section: str, column: int, message: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        config(tmp_path, section)
    text = str(raised.value)
    assert f"config.yaml:3:{column}" in text
    assert message in text
    assert "secret" not in text


def test_missing_packages_are_named_with_the_extra_that_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(tmp_path, f"{{endpoint: grpc://127.0.0.1:{unused_port()}}}")
    assert why_impossible(settings.tracing) is None
    assert why_impossible(None) is None
    found = util.find_spec
    monkeypatch.setattr(otlp_exporter, "find_spec", lambda name: None if "otlp" in name else found(name))
    message = why_impossible(settings.tracing) or ""
    assert "opentelemetry-exporter-otlp-proto-grpc" in message
    assert "pip install '.[otel]'" in message
    assert [(finding.section, finding.level) for finding in tracing.findings(settings)] == [
        ("tracing", "problem"),
        ("tracing", "warning"),
    ]


def test_doctor_finds_whether_the_collector_accepts_connections(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        (finding,) = tracing.findings(config(tmp_path, f"{{endpoint: http://127.0.0.1:{listener.getsockname()[1]}}}"))
        assert finding.level == "ok"
    (finding,) = tracing.findings(config(tmp_path, f"{{endpoint: http://127.0.0.1:{unused_port()}}}"))
    assert finding.level == "warning"
    assert "accepts no connection: Connection refused" in finding.text
    assert list(tracing.findings(load_without(tmp_path))) == []


def load_without(folder: Path) -> Config:
    file = folder / "without.yaml"
    file.write_text('models: [{name: m, handler: "handlers:Echo"}]\ndevices: {cpu: 1}\n')
    return load(file, environment={})


def test_a_package_in_a_missing_package_is_not_installed() -> None:
    assert not otlp_exporter._is_installed("no_such_package.of_any_kind")
