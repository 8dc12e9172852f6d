"""Edits the file of principals: an entry is added, and everything else stays as it is, with its comments.

The daemon's own reader checks the new file before it replaces the old one.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import YAMLError
from ruamel.yaml.scalarstring import DoubleQuotedScalarString
from ruamel.yaml.util import load_yaml_guess_indent

from multitower.supervisor.config.principals import read_principals
from multitower.supervisor.config.secret_files import GuardedFileError
from multitower.supervisor.config.source import ConfigError
from multitower.tools.errors import ToolError
from multitower.tools.replaced_file import replaced_file

NEW_MODE: Final = 0o644
"""The daemon reads the file as its own user, and it holds no secrets: hashes are of tokens that nobody can guess."""
KEY: Final = "principals"
HEAD: Final = "# Who may do what. `multitower keys add` adds an entry; `multitower reload` reads the file again.\n"

_WIDTH: Final = 1 << 16
"""Lines are not folded."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What is written about a principal. What is empty or None is left out.

    Attributes:
        name: its name.
        roles: what it may do.
        public_key: its CURVE key, in Z85.
        token_hash: the hash of its bearer token.
        models: names and patterns.
        max_outstanding: requests at a time.
        rate: requests per second.
    """

    name: str
    roles: Sequence[str] = ()
    public_key: str | None = None
    token_hash: str | None = None
    models: Sequence[str] = ()
    max_outstanding: int | None = None
    rate: float | None = None

    def to_yaml(self) -> CommentedMap:
        """The entry as a mapping that ruamel writes: hashes and keys in quotes, lists on one line."""
        entry = CommentedMap({"name": self.name})
        for key, text in (("public_key", self.public_key), ("token_hash", self.token_hash)):
            if text is not None:
                entry[key] = DoubleQuotedScalarString(text)
        for key, names in (("roles", self.roles), ("models", map(DoubleQuotedScalarString, self.models))):
            listed = CommentedSeq(names)
            if listed:
                listed.fa.set_flow_style()
                entry[key] = listed
        for key, number in (("max_outstanding", self.max_outstanding), ("rate", self.rate)):
            if number is not None:
                entry[key] = number
        return entry


def snippet(entry: Entry) -> str:
    """The entry as it stands in the file of principals."""
    text = io.StringIO()
    _writer().dump(CommentedSeq([entry.to_yaml()]), text)
    return text.getvalue()


def add_entry(path: Path, entry: Entry) -> None:
    """Adds an entry to a file of principals, which is made if it does not exist. The file is replaced as a whole.

    Raises:
        ToolError: there is a principal of this name or with this key, the file cannot be read or written, or is no file
            of principals. Then it has not changed.
    """
    text, mode = _read(path)
    document, sequence_indent, offset = _parse(path, text)
    listed = _entries(path, document)
    for present in listed:
        if present.get("name") == entry.name:
            raise ToolError(f"{path} has a principal {entry.name}; --rotate adds a key or a hash to it")
    _refuse_known_key(path, listed, entry)
    listed.append(entry.to_yaml())
    _write(path, document, mode, sequence_indent, offset)


def rotate_entry(path: Path, entry: Entry) -> None:
    """Adds a key or a hash to those that a principal has, so that both are valid until the old one is removed.

    Args:
        path: the file of principals.
        entry: the name, and what is added; roles and all else stay as they are.

    Raises:
        ToolError: see `add_entry`; or there is no such principal.
    """
    text, mode = _read(path)
    document, sequence_indent, offset = _parse(path, text)
    listed = _entries(path, document)
    _refuse_known_key(path, listed, entry)
    for present in listed:
        if present.get("name") == entry.name:
            for key, value in (("public_key", entry.public_key), ("token_hash", entry.token_hash)):
                if value is not None:
                    present[key] = _with(present.get(key), value)
            _write(path, document, mode, sequence_indent, offset)
            return
    raise ToolError(f"{path} has no principal {entry.name}; without --rotate it is added")


def _with(present: object, value: str) -> object:
    added = DoubleQuotedScalarString(value)
    if present is None:
        return added
    several = CommentedSeq([*(present if isinstance(present, list) else [present]), added])
    several.fa.set_block_style()
    return several


def _refuse_known_key(path: Path, listed: Sequence[Any], entry: Entry) -> None:
    if entry.public_key is None:
        return
    for present in listed:
        keys = present.get("public_key")
        if entry.public_key in (keys if isinstance(keys, list) else [keys]):
            raise ToolError(f"{path} has this public key already, for the principal {present.get('name')}")


def _read(path: Path) -> tuple[str, int]:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ToolError(f"{path} is not a regular file")
        return path.read_text(encoding="utf-8"), stat.S_IMODE(status.st_mode)
    except FileNotFoundError:
        return f"{HEAD}{KEY}: []\n", NEW_MODE
    except (OSError, UnicodeDecodeError) as error:
        raise ToolError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None


def _writer() -> YAML:
    yaml = YAML(typ="rt", pure=True)
    yaml.preserve_quotes = True
    yaml.width = _WIDTH
    return yaml


def _parse(path: Path, text: str) -> tuple[Any, int | None, int | None]:
    """The document, and how the file indents its lists."""
    try:
        document = _writer().load(text)
        _, sequence_indent, offset = load_yaml_guess_indent(text, yaml=_writer())
    except (YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}:{mark.column + 1}" if mark is not None else ""
        raise ToolError(f"{path}{where}: this is not YAML: {getattr(error, 'problem', None) or error}") from None
    return document, sequence_indent, offset


def _entries(path: Path, document: Any) -> Any:
    listed = document.get(KEY) if isinstance(document, dict) else None
    if isinstance(document, list):
        raise ToolError(f"{path} is no file of principals: its entries belong below a line `{KEY}:`")
    if not isinstance(listed, list) or not all(isinstance(present, dict) for present in listed):
        raise ToolError(f"{path} is no file of principals: it must have the key {KEY} with a list of mappings")
    if not listed and isinstance(listed, CommentedSeq):
        listed.fa.set_block_style()  # it was written as []
    return listed


def _check(path: Path, written: Path) -> None:
    try:
        read_principals(written)
    except (ConfigError, GuardedFileError) as error:
        raise ToolError(f"nothing was changed: {str(error).replace(str(written), str(path))}") from None


def _write(path: Path, document: Any, mode: int, sequence_indent: int | None, offset: int | None) -> None:
    yaml = _writer()
    if sequence_indent is not None:
        yaml.indent(mapping=2, sequence=sequence_indent, offset=offset or 0)
    try:
        status = path.stat() if path.exists() else None
        with replaced_file(path, mode) as file:
            yaml.dump(document, file)
            file.flush()
            _check(path, Path(file.name))
            if status is not None and os.geteuid() == 0:
                os.fchown(file.fileno(), status.st_uid, status.st_gid)  # root edits the file of the daemon's user
    except OSError as error:
        raise ToolError(f"cannot write {path}: {error.strerror or error}") from None
