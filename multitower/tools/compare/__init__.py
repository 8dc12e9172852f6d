"""What `multitower compare` runs; `cli.compare` is the command.

Pure: `ways` (what is found of each way, and the table of it). With processes: `measure` (the ways that the daemon goes,
one daemon after the other), `crash` (what a death takes down), and `sessions` (the way that TensorFlow itself does not
go, in a process of its own). This process itself loads no model and no TensorFlow.
"""
