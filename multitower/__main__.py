"""Runs the command line for `python -m multitower`."""

from multitower.cli import main

# A spawned worker imports the parent's main module again; that must not run the command line.
if __name__ == "__main__":
    main()
