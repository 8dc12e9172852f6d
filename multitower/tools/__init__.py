"""Programs beside the daemon: bench, compare, convert, demo and doctor.

The command line calls them and prints what they find; nothing here prints. Neither the daemon nor the client imports
them. `daemon` starts daemons and `load_generator` puts load on them; bench, compare and demo use both.
"""
