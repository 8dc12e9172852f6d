"""The event loop and what it needs: waiting, background jobs, the log, the runtime folder. No knowledge of models."""
