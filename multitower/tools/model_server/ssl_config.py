"""The file of --ssl_config_file, which has the private key and the certificates of TLS in its text."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from multitower.supervisor.config.secret_files import GuardedFileError, read_secret
from multitower.supervisor.config.source import ConfigError, Position, Problem
from multitower.tools.convert import yaml_text
from multitower.tools.convert.text_format import Field, Message, TextFormatError, Word, parse

_TEXTS: Final = ("server_key", "server_cert", "custom_ca")
_VERIFY: Final = "client_verify"


class SslConfig:
    """The file, and what it holds as files of their own for `gateway.tls`.

    They are in memory alone, so that no private key is left behind on a disk. They exist as long as this process.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._made: dict[str, _MemoryFile] = {}

    def keys(self) -> Iterator[str]:
        """Reads the file, and returns the lines of the section `tls`, with four spaces before each.

        Raises:
            ConfigError: the file cannot be used.
        """
        fields = self._read()
        names = ["server_cert", "server_key"]
        names += ["custom_ca"] if fields[_VERIFY] == "true" else []
        for name, key in zip(names, ("certificate", "private_key", "client_ca"), strict=False):
            if name not in self._made:
                self._made[name] = _MemoryFile(name)
            self._made[name].write(fields[name])
            yield f"    {key}: {yaml_text.quoted(self._made[name].path)}"

    def _read(self) -> dict[str, str]:
        """The value of each field, empty where the file has none."""
        try:
            message = parse(read_secret(self._path, "an SSLConfig with a private key"))
        except TextFormatError as error:
            raise self._wrong(str(error), error.line, error.column) from None
        except GuardedFileError as error:
            # It begins with the path, as the position does.
            raise ConfigError([Problem(Position(str(self._path)), (), str(error))]) from None
        found = self._fields(message)
        for name in ("server_key", "server_cert"):
            if not found[name].strip():
                raise self._wrong(f"{name} is missing or empty")
        if found[_VERIFY] == "true" and not found["custom_ca"].strip():
            raise self._wrong("client_verify needs custom_ca: the certificates of the authorities for clients")
        return found

    def _fields(self, message: Message) -> dict[str, str]:
        found = dict.fromkeys((*_TEXTS, _VERIFY), "")
        for field in message.fields:
            if field.name not in found:
                raise self._wrong(f"{field.name} is no field of an SSLConfig", field.line)
            found[field.name] = self._value(field)
        return found

    def _value(self, field: Field) -> str:
        if field.name == _VERIFY:
            value = str(field.value).lower()
            if value not in ("true", "t", "1", "false", "f", "0"):
                raise self._wrong(f"{field.name} must be true or false", field.line)
            return "true" if value in ("true", "t", "1") else ""
        # The message leaves the value out: it may be a secret.
        if not isinstance(field.value, str) or isinstance(field.value, Word):
            raise self._wrong(f"{field.name} must be a string in quotes", field.line)
        return field.value

    def _wrong(self, text: str, line: int = 0, column: int = 0) -> ConfigError:
        return ConfigError([Problem(Position(str(self._path), line, column), (), text)])


class _MemoryFile:
    """A file without a name, which this user's processes can open by its path in /proc."""

    def __init__(self, name: str) -> None:
        self._file = os.memfd_create(f"multitower-{name}")
        weakref.finalize(self, os.close, self._file)
        os.fchmod(self._file, 0o600)
        self.path = f"/proc/{os.getpid()}/fd/{self._file}"

    def write(self, text: str) -> None:
        """Replaces the content, if it is another one: the gateway reads a file again that has been written."""
        content = text.encode()
        if os.pread(self._file, len(content) + 1, 0) != content:
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, content, 0)
