"""A worker's last batches."""


class Window:
    """Placeholder."""

    def add(self, now: float, seconds: float, rows: int) -> None:
        """Nothing yet."""
