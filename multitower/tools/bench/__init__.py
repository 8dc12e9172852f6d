"""`multitower bench`: load on a daemon, and figures of its throughput, latency and bottleneck.

`session` measures one daemon: `client_pool` starts client processes, `client_process` is what they run, `observer`
reads the daemon's counters and the CPU time of its processes meanwhile. `run` puts the steps of a command in order.

Without processes and clocks: `arrivals`, `histogram`, `tally`, `inputs`, `rate_search`, `scaling`, `evidence`,
`bottleneck`, `results` and both reports. Only `plot` needs matplotlib.
"""
