"""The gateway as the daemon sees it: its listening sockets, its program, and the process that is kept running."""
