"""The machine: devices, their discovery, placement of slots, cores, use of resources."""
