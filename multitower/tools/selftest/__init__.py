"""`multitower selftest`: shows on the user's own machine that devices are pinned, freed and recovered.

A private daemon serves the handlers of `probe` on the devices that are to be checked. `run` starts it, runs the checks
and returns a report. The daemon's workers import `probe`; the other modules run in the process of the command.
"""

from __future__ import annotations

from typing import Final

IDENTIFY: Final = "identify"
TAKE: Final = "take"
GIVE_BACK: Final = "give_back"
EXHAUST: Final = "exhaust"
CRASH: Final = "crash"
"""What a request may ask of the handler `Probe`."""

MIB: Final = 1 << 20
