"""What `multitower bench` measures with; `cli.bench` is the command.

Without a process or a clock: `histogram`, `arrivals`, `tally`, `inputs`, `slo`, `scaling`, `evidence`, `report`. With
them: `generator` (the load of one client process), `pool` (all of those processes), `watch` (what the daemon and the
system say meanwhile), `daemon` (one of our own, for scaling), and `session`, which puts them together. `plot` alone
needs matplotlib.
"""
