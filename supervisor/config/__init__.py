"""The configuration file: its keys, their values, and the problems that are reported with them."""
