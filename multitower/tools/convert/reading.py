"""Reads files in protobuf's text format."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from multitower.supervisor.config.source import ConfigError, Position, Problem, may_pass
from multitower.tools.convert.text_format import Message, TextFormatError, parse

MAX_FILE_BYTES: Final = 1 << 20


def read_message(path: Path) -> Message:
    """Reads a file in protobuf's text format.

    Raises:
        ConfigError: it cannot be read, is too large, is not UTF-8, or is not in the format.
    """
    position = Position(str(path))
    try:
        # A pipe or a device may never end: no more is read than is accepted.
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise ConfigError([Problem(position, (), f"is over {MAX_FILE_BYTES >> 20} MiB")])
        return parse(data.decode())
    except TextFormatError as error:
        raise ConfigError([Problem(Position(str(path), error.line, error.column), (), str(error))]) from None
    except UnicodeDecodeError:
        raise ConfigError([Problem(position, (), "is not UTF-8")]) from None
    except OSError as error:
        problem = Problem(position, (), f"cannot be read: {error.strerror or error}")
        absent = isinstance(error, FileNotFoundError)  # a wrong name, rather than a file that will come
        raise ConfigError([problem], may_pass=may_pass(error) and not absent) from error
    except ValueError as error:  # a zero byte in the path
        raise ConfigError([Problem(position, (), str(error))]) from error
