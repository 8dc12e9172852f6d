"""The doctor's findings about security: CURVE, files that decide who gets in, dates of certificates, and Keras."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import zmq
from doctor_findings import worst
from fake_daemon import FakeDaemon
from made_security import make_keys, write_certificate, write_principals

from multitower import curve_keys
from multitower.bearer_tokens import hash_secret
from multitower.supervisor.config.loading import load
from multitower.tools.doctor import endpoints, gateway, packages, security
from multitower.tools.doctor.certificates import CertificateError, Validity, read_validities
from multitower.tools.doctor.findings import Finding, Level

# Self-signed, for these tests only; their private keys are not kept.
GPUS = """\
-----BEGIN CERTIFICATE-----
MIIBczCCARmgAwIBAgIULROEpvTLVg5CMV8f73EIOUWOl0UwCgYIKoZIzj0EAwIw
DzENMAsGA1UEAwwEZ3B1czAeFw0yNjEyMDIwNDA1NTNaFw0yNzAzMDIwNDA1NTNa
MA8xDTALBgNVBAMMBGdwdXMwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAAR/ALsq
c3kiR7gNkSUk+gvnQy1BKDqu5rpgLuK52itV9cfkKq6F3OJ4cpkrcbnzu09042rU
3u2aYgyILCdsM6zMo1MwUTAdBgNVHQ4EFgQUDh3uRD/qDO2Zd1WqyW8NZ3ciZogw
HwYDVR0jBBgwFoAUDh3uRD/qDO2Zd1WqyW8NZ3ciZogwDwYDVR0TAQH/BAUwAwEB
/zAKBggqhkjOPQQDAgNIADBFAiEA4VesvLYdYplNF2IYzr2N5aoVNGeSsTK+57Ui
QcShOfYCIDzCOTX5tAFG7In7BnNErev1AJjdzDApyIcV589doUMe
-----END CERTIFICATE-----
"""
GPUS_VALIDITY = Validity(datetime(2026, 12, 2, 4, 5, 53, tzinfo=UTC), datetime(2027, 3, 2, 4, 5, 53, tzinfo=UTC))

AUTHORITY = """\
-----BEGIN CERTIFICATE-----
MIIBfjCCASWgAwIBAgIULRh+pCMKQSlLT/SZYebq8fGiwPQwCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJYXV0aG9yaXR5MCAXDTI2MTIwMjA0MDU1M1oYDzIwNTkxMDEw
MDQwNTUzWjAUMRIwEAYDVQQDDAlhdXRob3JpdHkwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAAQY0oKghib+pS7/3L6hzdeForm2rikK6PdHQv9U1CNX4lpySXjtirqj
vLg2J3h5ow4G31Vntd7Yyri9q0tbf6/Go1MwUTAdBgNVHQ4EFgQUEO4PMKfT9BbF
AJQ5OshuMSWCCbwwHwYDVR0jBBgwFoAUEO4PMKfT9BbFAJQ5OshuMSWCCbwwDwYD
VR0TAQH/BAUwAwEB/zAKBggqhkjOPQQDAgNHADBEAiA7ChIuPmq6QPXm9OXMPxq8
Musqe9KhtfPi8Pt1EO/7iQIgPGRlJIvK/TzMMfcY9nNduYVQf4MyLKFuJyQQXv7Z
X4M=
-----END CERTIFICATE-----
"""
"""It ends after 2049, so its dates have another form."""

AUTHORITY_VALIDITY = Validity(datetime(2026, 12, 2, 4, 5, 53, tzinfo=UTC), datetime(2059, 10, 10, 4, 5, 53, tzinfo=UTC))


# CURVE.


def never() -> float:
    raise AssertionError("nothing has to be measured")


def test_a_libsodium_that_is_loaded_is_named() -> None:
    found = security.curve_finding(True, "libsodium.so.23", never)
    assert (found.level, found.advice) == (Level.OK, None)
    assert "with libsodium (libsodium.so.23 is loaded)" in found.text


def test_without_curve_it_is_a_problem() -> None:
    found = security.curve_finding(False, None, never)
    assert found.level is Level.PROBLEM
    assert "was built without CURVE" in found.text


def test_what_is_not_loaded_as_a_library_is_told_by_its_speed() -> None:
    fast = security.curve_finding(True, None, lambda: 30e-6)
    assert fast.level is Level.OK
    assert "with libsodium, by its speed" in fast.text
    assert "30 µs" in fast.text
    slow = security.curve_finding(True, None, lambda: 900e-6)
    assert slow.level is Level.WARNING
    assert "with TweetNaCl, by its speed" in slow.text


def test_this_process_is_examined() -> None:
    zmq.curve_keypair()
    maps = Path("/proc/self/maps").read_text()
    assert (
        security.loaded_library() is None if "libsodium" not in maps else "libsodium" in str(security.loaded_library())
    )
    assert 0 < security.seconds_for_a_key() < 1


# Files.


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "gpus.key_secret"
    pair = curve_keys.new_pair()
    path.write_text(curve_keys.certificate(pair.public, pair.secret))
    path.chmod(0o600)
    return path


def test_a_guarded_file_is_shown_with_owner_and_mode(key: Path) -> None:
    (found,) = security.guarded_findings("the daemon's secret key", key)
    assert found.level is Level.OK
    assert found.text.startswith(f"the daemon's secret key: {key} belongs to user ")
    assert found.text.endswith("(mode 0600)")


def test_a_folder_in_which_others_may_replace_the_file_is_a_problem(key: Path) -> None:
    for mode in (0o770, 0o757):
        key.parent.chmod(mode)
        (found,) = security.guarded_findings("the principals", key)
        assert found.level is Level.PROBLEM
        assert f"others may replace it: the folder {key.parent} has mode 0{mode:o}" in found.text
        assert f"chmod go-w {key.parent}" in str(found.advice)
    key.parent.chmod(0o1777)  # like /tmp: with the sticky bit nobody can
    (found,) = security.guarded_findings("the principals", key)
    assert found.level is Level.OK


def test_the_folder_of_a_link_s_target_counts(key: Path, tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    target = key.rename(inner / "key")
    key.symlink_to(target)
    inner.chmod(0o777)
    (found,) = security.guarded_findings("the principals", key)
    assert found.level is Level.PROBLEM
    assert str(inner) in found.text


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a folder to another user")
def test_a_folder_of_another_user_is_a_problem(key: Path) -> None:
    os.chown(key.parent, 65534, 65534)
    (found,) = security.guarded_findings("the principals", key)
    assert found.level is Level.PROBLEM
    assert f"the folder {key.parent} belongs to user" in found.text


def test_a_missing_file_is_a_problem(tmp_path: Path) -> None:
    (found,) = security.guarded_findings("the principals", tmp_path / "none")
    assert found.level is Level.PROBLEM
    assert "No such file" in found.text


# Certificates.


def test_the_dates_of_every_certificate_in_a_file_are_read(tmp_path: Path) -> None:
    path = tmp_path / "chain.pem"
    path.write_text(f"a comment\n{GPUS}{AUTHORITY}")
    assert read_validities(path) == [GPUS_VALIDITY, AUTHORITY_VALIDITY]


@pytest.mark.parametrize(
    "text", ["", "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----", GPUS[:200] + GPUS[-80:]]
)
def test_what_is_no_certificate_is_an_error(text: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.pem"
    path.write_text(text)
    with pytest.raises(CertificateError, match=r"broken\.pem"):
        read_validities(path)
    assert security.certificate_finding("it", path, datetime.now(UTC)).level is Level.PROBLEM


@pytest.mark.parametrize(
    ("now", "level", "words"),
    [
        (GPUS_VALIDITY.begins - timedelta(seconds=1), Level.PROBLEM, "is not valid before 2026-12-02"),
        (GPUS_VALIDITY.begins, Level.OK, "is valid until 2027-03-02"),
        (GPUS_VALIDITY.ends - timedelta(days=30), Level.OK, "is valid until 2027-03-02"),
        (GPUS_VALIDITY.ends - timedelta(days=29, hours=1), Level.WARNING, "until 2027-03-02, in 29 days"),
        (GPUS_VALIDITY.ends, Level.PROBLEM, "expired on 2027-03-02"),
    ],
)
def test_a_certificate_is_judged_by_its_dates(now: datetime, level: Level, words: str, tmp_path: Path) -> None:
    path = tmp_path / "chain.pem"
    path.write_text(AUTHORITY + GPUS)  # the first to end counts
    found = security.certificate_finding("the gateway's certificate", path, now)
    assert found.level is level
    assert words in found.text
    assert (found.advice is None) == (level is Level.OK)


# A configuration.


def findings_of(folder: Path, text: str) -> list[Finding]:
    path = folder / "multitower.yaml"
    path.write_text(f"devices: {{cpu: 1}}\nmodels: [{{name: m, handler: 'handlers:Double'}}]\n{text}")
    (folder / "handlers.py").write_text("class Double: pass\n")
    return list(security.findings(load(path, strict=False)))


def test_a_daemon_without_locks_on_loopback_has_no_findings(tmp_path: Path) -> None:
    assert findings_of(tmp_path, "listen: [tcp://127.0.0.1:5555]\n") == []


def test_insecure_is_a_warning(tmp_path: Path) -> None:
    (found,) = findings_of(tmp_path, "insecure: true\nlisten: ['tcp://0.0.0.0:5555']\n")
    assert found.level is Level.WARNING
    assert found.text.startswith("insecure: true")


def test_security_is_examined(tmp_path: Path, key: Path) -> None:
    principals = tmp_path / "principals.yaml"
    principals.write_text("principals: []\n")
    principals.chmod(0o600)
    text = f"security: {{curve: {{secret_key: {key}}}, principals: {principals}}}\nlisten: ['tcp://0.0.0.0:5555']\n"
    found = findings_of(tmp_path, text)
    assert [finding.level for finding in found] == [Level.OK, Level.OK, Level.OK, Level.WARNING]
    assert "CURVE" in found[0].text
    assert str(key) in found[1].text
    assert str(principals) in found[2].text
    assert found[3].text == f"0 principals in {principals}"


def test_authorities_are_examined_as_what_lets_clients_in(tmp_path: Path) -> None:
    certificate, private_key = write_certificate(tmp_path)
    authorities = tmp_path / "open" / "client_ca.pem"
    authorities.parent.mkdir()
    authorities.write_text(AUTHORITY)
    authorities.parent.chmod(0o777)
    tls = f"{{certificate: {certificate}, private_key: {private_key}, client_ca: {authorities}}}"
    found = findings_of(tmp_path, f"listen: [ipc://a]\ngateway: {{http: '127.0.0.1:1', tls: {tls}}}\n")
    (problem,) = [each.text for each in found if "others may replace it" in each.text]
    assert problem.startswith(f"client_ca: {authorities}")


def test_a_pattern_that_matches_no_model_is_a_warning(tmp_path: Path, key: Path) -> None:
    entries = [
        {"name": "one", "roles": ["infer"], "models": ["m", "[lm]", "rest-*"], "public_key": make_keys().public},
        {"name": "two", "roles": ["infer"], "models": ["*"], "public_key": make_keys().public},
        {"name": "all", "roles": ["infer"], "public_key": make_keys().public},
    ]
    principals = write_principals(tmp_path / "principals.yaml", entries)
    text = f"security: {{curve: {{secret_key: {key}}}, principals: {principals}}}\nlisten: ['tcp://0.0.0.0:5555']\n"
    warnings = [each.text for each in findings_of(tmp_path, text) if each.level is Level.WARNING]
    assert warnings == ["one: rest-* matches no model of this configuration"]


def test_a_hash_without_a_fingerprint_is_a_warning(tmp_path: Path, key: Path) -> None:
    new = hash_secret("x" * 43)
    hashes = {"new": str(new), "old": [str(new), str(replace(new, fingerprint=None))]}
    entries = [{"name": name, "roles": ["infer"], "token_hash": hashed} for name, hashed in hashes.items()]
    principals = write_principals(tmp_path / "principals.yaml", entries)
    text = f"security: {{curve: {{secret_key: {key}}}, principals: {principals}}}\nlisten: ['tcp://0.0.0.0:5555']\n"
    (warning,) = [each for each in findings_of(tmp_path, text) if each.level is Level.WARNING]
    assert warning.text.startswith("old: a token_hash without f=")


# Others.


def test_an_endpoint_of_a_daemon_with_locks_is_told_from_another_program() -> None:
    with FakeDaemon(secret_key=curve_keys.new_pair().secret) as daemon:
        found = worst(
            finding for finding in endpoints.findings([daemon.endpoint], None) if daemon.endpoint in finding.text
        )
    assert (found.level, found.text) == (Level.WARNING, f"{daemon.endpoint}: a daemon with `security` is running there")


def test_a_gateway_behind_locks_is_not_called_another_program() -> None:
    with FakeDaemon(secret_key=curve_keys.new_pair().secret) as daemon:
        found = gateway._taken_finding([daemon.endpoint], "127.0.0.1:8000")
    assert found.level is Level.WARNING
    assert "perhaps by the gateway of the running daemon" in found.text
    assert "MULTITOWER_KEY" in str(found.advice)


@pytest.mark.parametrize(
    ("version", "needed", "level"),
    [
        (None, True, None),
        ("3.14.0", True, None),
        ("3.15.1", True, None),
        ("3.13.2", True, Level.WARNING),
        ("3.9", False, Level.NOTE),
    ],
)
def test_a_keras_that_runs_hidden_code_is_named(
    version: str | None, needed: bool, level: Level | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "_version", lambda name: version if name == "keras" else None)
    found = packages.keras_finding(needed=needed)
    assert (None if found is None else found.level) == level
    assert found is None or "CVE-2026-1462" in found.text
