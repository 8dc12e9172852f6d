"""Refuses primitives that gevent or eventlet have replaced."""

from __future__ import annotations

import sys
from typing import Final

_CHECKS: Final = {
    "gevent": ("gevent.monkey", "is_module_patched", ("threading", "select")),
    "eventlet": ("eventlet.patcher", "is_monkey_patched", ("thread", "select")),
}


def check_primitives() -> None:
    """Checks that threads and `select` are Python's own.

    The client has a thread that sleeps in `poll`. Patched, `select` has no `poll`, and a green thread that waits for
    the client's thread stops all others, or waits for ever.

    Raises:
        RuntimeError: gevent or eventlet have replaced them.
    """
    for library, (name, function, primitives) in _CHECKS.items():
        is_patched = getattr(sys.modules.get(name), function, None)
        patched = [] if is_patched is None else [each for each in primitives if is_patched(each)]
        if patched:
            raise RuntimeError(
                f"multitower's client cannot run where {library} has patched {' and '.join(patched)}: it needs real "
                f"threads. Use it in a process without monkey_patch (gunicorn: the worker class gthread)"
            )
