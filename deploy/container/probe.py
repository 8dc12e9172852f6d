#!/opt/multitower/bin/python
"""Asks the daemon of this container, for a health check: `multitower-probe live`, `serving` or `ready`.

`live`: the daemon answers. `serving`: some worker is ready, and the daemon is not draining. `ready`: each of its models
has a ready worker, and it is not draining. The endpoint is MULTITOWER_ENDPOINT, otherwise tcp://127.0.0.1:5555. Exit
code 0 for yes; 1 for no, with the reason.
"""

import sys

from multitower import Client, MultitowerError

TIMEOUT_S = 4.0
"""Shorter than the time that a health check gets, so that the reason is printed."""


def main() -> int:
    """Asks, and returns the exit code."""
    if sys.argv[1:] not in (["live"], ["serving"], ["ready"]):
        print(f"usage: {sys.argv[0]} live|serving|ready", file=sys.stderr)
        return 2
    (question,) = sys.argv[1:]
    try:
        with Client(timeout=TIMEOUT_S, connect_timeout=TIMEOUT_S, retries=0) as client:
            if question == "live":
                fine, found = client.live(), "the daemon answers"
            elif question == "serving":
                daemon = client.status()["daemon"]
                fine = daemon["state"] == "running" and daemon["slots_ready"] > 0
                found = f"the daemon is {daemon['state']}"
                found += f"; {daemon['slots_ready']} of {daemon['slots_total']} slots are ready"
            else:
                answer = client.server_ready()
                fine = bool(answer["ready"])
                found = "each model has a ready worker" if fine else "a model has no ready worker, or the daemon drains"
                found += f"; {answer['slots_ready']} of {answer['slots_total']} slots are ready"
    except MultitowerError as error:
        fine, found = False, str(error)
    print(found)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
