"""From clients to workers and back: front sockets, admission, regions, statistics."""
