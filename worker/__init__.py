"""The worker process: one device, its models, one batch after the other. Only the supervisor starts it."""
