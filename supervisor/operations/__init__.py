"""What operators and service managers get from a running daemon: status, readiness, orders, new model versions."""
