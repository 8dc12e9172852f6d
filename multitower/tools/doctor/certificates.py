"""When certificates are valid, read from their files. Only the dates: the gateway checks everything else."""

from __future__ import annotations

import re
import ssl
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

_PEM: Final = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_SEQUENCE: Final = 0x30
_VERSION: Final = 0xA0
_UTC_TIME: Final = 0x17
_GENERALIZED_TIME: Final = 0x18


class CertificateError(ValueError):
    """A certificate cannot be read; the message says why."""


class Validity(NamedTuple):
    """From when until when a certificate is valid."""

    begins: datetime
    ends: datetime


def read_validities(path: Path) -> list[Validity]:
    """The validity of each certificate in a file in PEM, in their order.

    Raises:
        CertificateError: the file cannot be read, or holds none, or a malformed one.
    """
    try:
        text = path.read_text(encoding="ascii", errors="replace")
    except OSError as error:
        raise CertificateError(f"{path} cannot be read: {error.strerror or error}") from None
    found = _PEM.findall(text)
    if not found:
        raise CertificateError(f"{path} holds no certificate in PEM")
    try:
        return [_validity(ssl.PEM_cert_to_DER_cert(each)) for each in found]
    except (ValueError, IndexError) as error:
        raise CertificateError(f"{path} holds a malformed certificate: {error}") from None


def _validity(der: bytes) -> Validity:
    """The validity of a certificate (RFC 5280, section 4.1): the fourth field of its body, the version not counted."""
    certificate = _content(der, _SEQUENCE)
    fields = _elements(_content(certificate, _SEQUENCE))
    if fields[0][0] == _VERSION:
        del fields[0]
    tag, dates = fields[3]
    if tag != _SEQUENCE:
        raise ValueError("it has no validity where one must be")
    begins, ends = (_time(*element) for element in _elements(dates))
    return Validity(begins, ends)


def _content(der: bytes, wanted: int) -> bytes:
    tag, content = _elements(der, most=1)[0]
    if tag != wanted:
        raise ValueError(f"it has the tag {tag:#x} instead of {wanted:#x}")
    return content


def _elements(der: bytes, most: int = 1 << 16) -> list[tuple[int, bytes]]:
    """The elements that follow each other, as tags and contents."""
    elements: list[tuple[int, bytes]] = []
    position = 0
    while position < len(der) and len(elements) < most:
        tag, length = der[position], der[position + 1]
        position += 2
        if length & 0x80:
            size = length & 0x7F
            length = int.from_bytes(der[position : position + size])
            position += size
        if position + length > len(der):
            raise ValueError("it ends too early")
        elements.append((tag, der[position : position + length]))
        position += length
    return elements


def _time(tag: int, content: bytes) -> datetime:
    text = content.decode("ascii")
    if tag == _UTC_TIME:  # of two digits, up to 49 are of this century
        text = ("20" if text < "50" else "19") + text
    elif tag != _GENERALIZED_TIME:
        raise ValueError(f"a date has the tag {tag:#x}")
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)
