"""Whether this machine can watch processes through pidfds, which the supervisor does."""

from __future__ import annotations

import os
import signal


def pidfd_error() -> str | None:
    """Returns the call that fails, and why; None where pidfds can be used.

    Linux has them from 5.3 on. A sandbox may forbid or lack them.
    """
    try:
        descriptor = os.pidfd_open(os.getpid())
    except OSError as error:
        return f"pidfd_open: {error.strerror}"
    try:
        signal.pidfd_send_signal(descriptor, 0)
    except OSError as error:
        return f"pidfd_send_signal: {error.strerror}"
    finally:
        os.close(descriptor)
    return None
