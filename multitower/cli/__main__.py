"""`python -m multitower.cli` is `multitower`."""

from multitower.cli import main

# A spawned worker imports the parent's main module again; it must not run the command line a second time.
if __name__ == "__main__":
    main()
