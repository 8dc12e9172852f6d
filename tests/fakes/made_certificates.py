"""An authority and certificates of it, made by the program openssl."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path
from typing import Final

_NEW_KEY: Final = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


class Authority:
    """An authority, with its files in a folder.

    Attributes:
        folder: has `ca.pem`, and NAME.pem and NAME.key of each certificate.
        ca: the path of its certificate.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca = folder / "ca.pem"
        self._make("ca", "/CN=authority", "basicConstraints=critical,CA:TRUE", "-days", "2")

    def issue(self, name: str, subject: str = "/CN=localhost", days: int = 2) -> tuple[Path, Path]:
        """Makes a certificate, which is also one of a server on this machine; returns its path and its key's.

        Args:
            name: of its files.
            subject: whose it is.
            days: for how long it is valid.
        """
        extensions = ["-CA", str(self.ca), "-CAkey", str(self.folder / "ca.key"), "-days", str(days)]
        extensions += ["-addext", "basicConstraints=critical,CA:FALSE"]
        return self._make(name, subject, "subjectAltName=DNS:localhost,IP:127.0.0.1", *extensions)

    def issue_expired(self, name: str, began: str, ended: str) -> tuple[Path, Path]:
        """Makes a certificate of localhost that is not valid any more; returns its path and its key's.

        Args:
            name: of its files.
            began: since when it was valid, such as `20250101000000Z`.
            ended: until when.
        """
        certificate, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        request, config = self.folder / f"{name}.csr", self.folder / f"{name}.cnf"
        (self.folder / "index.txt").touch()
        config.write_text(
            "[ca]\ndefault_ca = here\n[here]\npolicy = any\ndefault_md = sha256\nrand_serial = yes\n"
            f"database = {self.folder}/index.txt\nnew_certs_dir = {self.folder}\nunique_subject = no\n"
            "x509_extensions = server\n[server]\nbasicConstraints = critical,CA:FALSE\n"
            "subjectAltName = DNS:localhost,IP:127.0.0.1\n[any]\ncommonName = supplied\n"
        )
        _openssl("req", *_NEW_KEY, "-subj", "/CN=localhost", "-keyout", str(key), "-out", str(request))
        dates = ["-startdate", began, "-enddate", ended, "-in", str(request), "-out", str(certificate)]
        by = ["-cert", str(self.ca), "-keyfile", str(self.folder / "ca.key")]
        _openssl("ca", "-batch", "-notext", "-config", str(config), *by, *dates)
        return certificate, key

    def _make(self, name: str, subject: str, extension: str, *more: str) -> tuple[Path, Path]:
        certificate, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        files = ["-keyout", str(key), "-out", str(certificate)]
        _openssl("req", "-x509", *_NEW_KEY, "-subj", subject, "-addext", extension, *more, *files)
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


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=60)
