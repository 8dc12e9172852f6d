"""What an operator asks of a running daemon: status, reload, restart, loading and unloading of models."""
