"""Tensors in clients' shared memory, as a worker reads and writes them."""
