"""`multitower model-server --ssl_config_file` takes tensorflow_model_server's file, and makes `gateway.tls` of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_security import CERTIFICATE, PRIVATE_KEY

from multitower.supervisor.config.source import ConfigError
from multitower.tools.model_server.settings import ModelServer

SECRET = "b25jZSB1cG9uIGEgdGltZQ"


def quoted(text: str) -> str:
    """A string of the text format, as scripts make it of a file: with its lines as escapes."""
    return '"' + text.replace("\n", "\\n") + '"'


PAIR = f"server_key: {quoted(PRIVATE_KEY)}\nserver_cert: {quoted(CERTIFICATE)}\n"


def server(folder: Path, text: str, mode: int = 0o600) -> ModelServer:
    """Also makes a model."""
    (folder / "digits" / "1").mkdir(parents=True, exist_ok=True)
    (folder / "digits" / "1" / "saved_model.pb").touch()
    path = folder / "ssl.config"
    path.write_text(text)
    path.chmod(mode)
    return ModelServer(
        {"model_base_path": "digits", "rest_api_port": 8501, "ssl_config_file": "ssl.config"},
        host="127.0.0.1",
        insecure=False,
        devices="{cpu: 1}",
        listen="tcp://127.0.0.1:5555",
        folder=folder,
    )


def test_key_and_certificate_become_files_that_only_this_user_reads(tmp_path: Path) -> None:
    made = server(tmp_path, PAIR)
    gateway = made.read().gateway
    assert gateway is not None
    assert gateway.tls is not None
    assert gateway.tls.client_ca is None
    assert gateway.tls.certificate.read_text() == CERTIFICATE
    assert gateway.tls.private_key.read_text() == PRIVATE_KEY
    assert gateway.tls.private_key.stat().st_mode & 0o777 == 0o600
    assert not [
        path for path in tmp_path.rglob("*") if path.name not in ("digits", "1", "saved_model.pb", "ssl.config")
    ]


def test_a_reload_keeps_the_paths_and_writes_what_has_changed(tmp_path: Path) -> None:
    made = server(tmp_path, PAIR)
    first = made.read().gateway
    assert first is not None
    assert first.tls is not None
    written = first.tls.certificate.stat().st_mtime_ns
    again = made.read().gateway
    assert again is not None
    assert again.tls == first.tls
    assert first.tls.certificate.stat().st_mtime_ns == written, "the gateway would read it again"
    (tmp_path / "ssl.config").write_text(PAIR.replace("-----BEGIN CERT", "of 2027\\n-----BEGIN CERT"))
    made.read()
    assert first.tls.certificate.read_text() == f"of 2027\n{CERTIFICATE}"


@pytest.mark.parametrize(("verify", "verified"), [("true", True), ("false", False), ("1", True), (None, False)])
def test_clients_are_verified_only_where_the_file_says_so(verify: str | None, verified: bool, tmp_path: Path) -> None:
    line = "" if verify is None else f"client_verify: {verify}"
    gateway = server(tmp_path, f"{PAIR} custom_ca: {quoted(CERTIFICATE)} {line}").read().gateway
    assert gateway is not None
    assert gateway.tls is not None
    assert (gateway.tls.client_ca is not None) == verified


@pytest.mark.parametrize(
    ("text", "mode", "words"),
    [
        (f"server_cert: {quoted(CERTIFICATE)}", 0o600, "server_key is missing or empty"),
        (f"server_key: {quoted(PRIVATE_KEY)}", 0o600, "server_cert is missing or empty"),
        (f"{PAIR} client_verify: true", 0o600, "client_verify needs custom_ca"),
        (f"{PAIR} client_verify: 3", 0o600, "client_verify must be true or false"),
        (f"{PAIR} client_verfy: true", 0o600, r"ssl\.config:3.*client_verfy is no field"),
        ("server_key: 12", 0o600, r"ssl\.config:1.*server_key must be a string"),
        ("server_key: {", 0o600, r"ssl\.config:1"),
        ("", 0o600, "is empty"),
        (PAIR, 0o644, "0644"),
        (f"server_key: '{SECRET}' server_cert: {quoted(CERTIFICATE)}", 0o600, "holds no private key in PEM"),
        (f"server_key: {quoted(PRIVATE_KEY)} server_cert: '{SECRET}'", 0o600, "holds no certificate in PEM"),
    ],
)
def test_what_is_wrong_ends_the_start_and_no_secret_is_shown(text: str, mode: int, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        server(tmp_path, text, mode).read()
    assert SECRET not in str(caught.value)
    assert PRIVATE_KEY.splitlines()[1] not in str(caught.value)
