"""POSIX access control lists of files: what others may do where the mode alone does not tell.

With a list, the group's bits of a mode are the list's mask: the most that its named users and groups may do. So systemd
shows mode 0440 for a credential (`LoadCredential`) that nobody but the unit's user and root may read.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator
from typing import Final

_ATTRIBUTE: Final = "system.posix_acl_access"
_VERSION: Final = struct.pack("<I", 2)
_ENTRY: Final = struct.Struct("<HHI")
"""A tag, permissions, and the number of a user or group."""

_USER, _GROUP_OF_FILE, _GROUP, _MASK = 0x02, 0x04, 0x08, 0x10


def mode_for_others(descriptor: int, status: os.stat_result) -> int:
    """Returns a file's mode, as it would be without an access control list.

    Args:
        descriptor: of the file.
        status: of the file.

    Returns:
        The permissions, 0 to 0o7777. With a list, the group's are what the group and all named users and groups may
        do together, but for root and the user of this process.
    """
    mode = stat.S_IMODE(status.st_mode)
    if not mode & stat.S_IRWXG:
        return mode  # nor may a user that a list names: the mask is empty
    try:
        entries = list(_entries(os.getxattr(descriptor, _ATTRIBUTE)))
    except (OSError, ValueError):  # there is no list, or none that can be read: the mode counts
        return mode
    allowed = next((permissions & 7 for tag, permissions, _ in entries if tag == _MASK), None)
    if allowed is None:  # it names nobody, so the group's bits of the mode are the group's own
        return mode
    granted = 0
    for tag, permissions, number in entries:
        if tag in (_GROUP_OF_FILE, _GROUP) or (tag == _USER and number not in (0, os.geteuid())):
            granted |= permissions & 7
    return mode & ~stat.S_IRWXG | (allowed & granted) << 3


def _entries(value: bytes) -> Iterator[tuple[int, int, int]]:
    if not value.startswith(_VERSION) or (len(value) - len(_VERSION)) % _ENTRY.size:
        raise ValueError("is no access control list")
    return _ENTRY.iter_unpack(value[len(_VERSION) :])
