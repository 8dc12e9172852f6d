"""Names of users and groups, for messages."""

from __future__ import annotations

import grp
import pwd


def user_name(uid: int) -> str:
    """The name of a user, or its number where it has none here, as in a container."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def group_name(gid: int) -> str:
    """The name of a group, or its number where it has none here."""
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
