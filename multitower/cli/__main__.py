"""`python -m multitower.cli` is `multitower`."""

from multitower.cli import main

# A spawned worker imports its parent's main module again and must not run the command line.
if __name__ == "__main__":
    main()
