"""`python -m multitower.cli` is `multitower`."""

import sys

from multitower.cli import main
from multitower.early_signals import die_of_ctrl_c
from multitower.import_path import put_last

# A spawned worker imports its parent's main module again and must not run the command line.
if __name__ == "__main__":
    die_of_ctrl_c()
    if not sys.flags.safe_path:
        put_last(sys.path[:1])  # the working directory, which Python puts first
    main()
