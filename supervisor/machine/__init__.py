"""The machine: its devices and cores, how workers share them, and how much they use."""
