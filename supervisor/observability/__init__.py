"""What operators see of the daemon beside its status: metrics, traces, the log of requests."""
