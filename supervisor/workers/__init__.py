"""Worker processes: slots, launch, spares, health, replacement, exits."""
