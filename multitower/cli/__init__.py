"""The command `multitower`."""
