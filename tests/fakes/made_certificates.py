"""An authority and certificates of it, made by the program openssl."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path


class Authority:
    """An authority, with its files in a folder.

    Attributes:
        folder: has `ca.pem`, and NAME.pem and NAME.key of each certificate.
        ca: the path of its certificate.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca = folder / "ca.pem"
        self._make("ca", "/CN=authority", "basicConstraints=critical,CA:TRUE")

    def issue(self, name: str, subject: str = "/CN=localhost") -> tuple[Path, Path]:
        """Makes a certificate, which is also one of a server on this machine; returns its path and its key's."""
        extensions = ["-CA", str(self.ca), "-CAkey", str(self.folder / "ca.key")]
        extensions += ["-addext", "basicConstraints=critical,CA:FALSE"]
        return self._make(name, subject, "subjectAltName=DNS:localhost,IP:127.0.0.1", *extensions)

    def _make(self, name: str, subject: str, extension: str, *more: str) -> tuple[Path, Path]:
        certificate, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        command += [
            "-days",
            "2",
            "-subj",
            subject,
            "-addext",
            extension,
            *more,
            "-keyout",
            str(key),
            "-out",
            str(certificate),
        ]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        return certificate, key

    def client_context(self, pair: tuple[Path, Path] | None = None) -> ssl.SSLContext:
        """What a client needs that trusts this authority, and shows a certificate if one is given."""
        context = ssl.create_default_context(cafile=self.ca)
        if pair is not None:
            context.load_cert_chain(*pair)
        return context


def replace(path: Path, by: Path) -> None:
    """Writes one file over another, not at once: readers may meet it half-written."""
    shutil.copyfile(by, path)
