"""Runs the command line for `python -m multitower`."""

import sys

from multitower.early_signals import die_of_ctrl_c

# A spawned worker imports the parent's main module again; that must not run the command line.
if __name__ == "__main__":
    die_of_ctrl_c()
    from multitower.import_path import put_last

    if not sys.flags.safe_path:
        put_last(sys.path[:1])  # the working directory, which Python puts first
    from multitower.cli import main

    main()
