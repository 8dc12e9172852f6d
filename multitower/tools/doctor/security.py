"""Security: CURVE and what computes it, the files that decide who gets in, and the dates of certificates.

Whether these files can be used at all was checked when the configuration was read.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import zmq

from multitower.account_names import user_name
from multitower.supervisor.config.config import Config
from multitower.supervisor.config.principals import unmatched, without_fingerprint
from multitower.supervisor.config.security import SecurityConfig
from multitower.tools.doctor.certificates import CertificateError, read_validities
from multitower.tools.doctor.findings import Finding, Level, with_number

SECTION: Final = "security"
SOON: Final = timedelta(days=30)
"""A certificate that expires within this time is a warning."""

FAST_S: Final = 250e-6
"""For computing a public key from a secret one. libsodium takes some 30 µs on a core of 2024. TweetNaCl is written to
be short, and takes many times as long."""

_ATTEMPTS: Final = 10


def findings(config: Config) -> Iterator[Finding]:
    """Findings about security; none for a daemon that only this machine can reach, without `security` and TLS."""
    if config.insecure:
        text = "insecure: true: every client that reaches the daemon may do all that the configuration allows"
        yield Finding(SECTION, Level.WARNING, text, "configure `security`, and remove `insecure`")
    if config.security is not None:
        yield from _access_findings(config, config.security)
    yield from _tls_findings(config)


def _access_findings(config: Config, section: SecurityConfig) -> Iterator[Finding]:
    if section.curve is not None:
        yield curve_finding(zmq.has("curve"), loaded_library(), seconds_for_a_key)
        yield from guarded_findings("the daemon's secret key", section.curve.secret_key)
    yield from guarded_findings("the principals", section.principals)
    if config.principals is not None:
        number = with_number(len(config.principals.by_name), "principal")
        level = Level.OK if config.principals.by_name else Level.WARNING
        advice = None if config.principals.by_name else "`multitower keys add` adds one"
        yield Finding(SECTION, level, f"{number} in {section.principals}", advice)
        for name, patterns in unmatched(config.principals, [model.name for model in config.models]).items():
            text = f"{name}: {', '.join(patterns)} matches no model of this configuration"
            yield Finding(SECTION, Level.WARNING, text, f"correct `models` of {name} in {section.principals}")
        if old := without_fingerprint(config.principals):
            text = f"{', '.join(old)}: a token_hash without f=, so wrong tokens can make others at an address wait"
            yield Finding(SECTION, Level.WARNING, text, "`multitower keys hash` makes a new hash of the same token")


def _tls_findings(config: Config) -> Iterator[Finding]:
    tls = config.gateway.tls if config.gateway is not None else None
    if tls is not None:
        yield from guarded_findings("the gateway's private key", tls.private_key)
        if tls.client_ca is not None:
            yield from guarded_findings("client_ca", tls.client_ca)
        for what, path in (("the gateway's certificate", tls.certificate), ("client_ca", tls.client_ca)):
            if path is not None:
                yield certificate_finding(what, path, datetime.now(UTC))


# CURVE.


def curve_finding(available: bool, loaded: str | None, seconds: Callable[[], float]) -> Finding:
    """A finding about what computes CURVE for libzmq.

    Args:
        available: whether libzmq has CURVE.
        loaded: the file of libsodium that this process has loaded; None if there is none.
        seconds: returns how long a public key takes to compute; called only if nothing else tells.
    """
    if not available:
        text = f"libzmq {zmq.zmq_version()} was built without CURVE"
        return Finding(
            SECTION, Level.PROBLEM, text, "install pyzmq from its wheel: pip install --force-reinstall pyzmq"
        )
    if loaded is not None:
        return Finding(SECTION, Level.OK, f"libzmq computes CURVE with libsodium ({loaded} is loaded)")
    taken = seconds()
    measured = f"libsodium is not loaded as a library, and a key takes {taken * 1e6:.0f} µs"
    if taken < FAST_S:
        return Finding(SECTION, Level.OK, f"libzmq computes CURVE with libsodium, by its speed: {measured}")
    text = f"libzmq computes CURVE with TweetNaCl, by its speed: {measured}; encryption takes many times the CPU time"
    return Finding(SECTION, Level.WARNING, text, "install pyzmq from its wheel, which brings libsodium")


def loaded_library() -> str | None:
    """The name of libsodium's file, if this process has loaded one."""
    try:
        lines = Path("/proc/self/maps").read_text(errors="replace").splitlines()
    except OSError:
        return None
    names = (line.rpartition("/")[2] for line in lines if "/" in line)
    return next((name for name in names if name.startswith("libsodium")), None)


def seconds_for_a_key() -> float:
    """The shortest of some attempts: other programs use the cores as well."""
    secret = zmq.curve_keypair()[1]
    taken = []
    for _ in range(_ATTEMPTS):
        begun = time.perf_counter()
        zmq.curve_public(secret)
        taken.append(time.perf_counter() - begun)
    return min(taken)


# Files.


def guarded_findings(what: str, path: Path) -> Iterator[Finding]:
    """Findings about a file that decides who gets in: its owner and mode, and who else could replace it.

    Args:
        what: it holds, for people.
        path: the file.
    """
    try:
        status = path.stat()
    except OSError as error:
        yield Finding(SECTION, Level.PROBLEM, f"{what}: {path} cannot be examined: {error.strerror}", "check its path")
        return
    mode = stat.S_IMODE(status.st_mode)
    text = f"{what}: {path} belongs to user {user_name(status.st_uid)} (mode {mode:04o})"
    open_folder = _open_folder(path, status.st_uid)
    if open_folder is None:
        yield Finding(SECTION, Level.OK, text)
        return
    folder, why = open_folder
    advice = f"chmod go-w {folder}, or move the file to a folder of the daemon's user or root"
    yield Finding(SECTION, Level.PROBLEM, f"{text}, but others may replace it: the folder {folder} {why}", advice)


def _open_folder(path: Path, owner: int) -> tuple[Path, str] | None:
    """The first folder of a path in which others may replace what it holds, and why; None if there is none."""
    for folder in Path(os.path.realpath(path)).parents:
        status = folder.stat()
        if status.st_uid not in (0, os.geteuid(), owner):
            return folder, f"belongs to user {user_name(status.st_uid)}"
        # With the sticky bit, as /tmp has it, nobody can replace a file of another user.
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not status.st_mode & stat.S_ISVTX:
            return folder, f"has mode {stat.S_IMODE(status.st_mode):04o}"
    return None


def certificate_finding(what: str, path: Path, now: datetime) -> Finding:
    """A finding about the dates of the certificates in a file.

    Args:
        what: they are, for people.
        path: of the file, in PEM.
        now: the time.
    """
    advice = "replace it: the gateway reads it again when the file changes"
    try:
        validities = read_validities(path)
    except CertificateError as error:
        return Finding(SECTION, Level.PROBLEM, f"{what}: {error}", advice)
    begins, ends = max(each.begins for each in validities), min(each.ends for each in validities)
    if ends <= now:
        return Finding(SECTION, Level.PROBLEM, f"{what}: {path} expired on {ends:%Y-%m-%d}", advice)
    if begins > now:
        text = f"{what}: {path} is not valid before {begins:%Y-%m-%d}"
        return Finding(SECTION, Level.PROBLEM, text, "check the machine's clock")
    text = f"{what}: {path} is valid until {ends:%Y-%m-%d}"
    if ends - now < SOON:
        return Finding(SECTION, Level.WARNING, f"{text}, in {with_number((ends - now).days, 'day')}", advice)
    return Finding(SECTION, Level.OK, text)
