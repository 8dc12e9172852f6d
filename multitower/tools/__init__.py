"""Programs beside the daemon, used by the command line: bench, compare, convert, demo, doctor."""
