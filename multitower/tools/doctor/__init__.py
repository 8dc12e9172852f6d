"""What `multitower doctor` examines; `cli.doctor` is the command.

Pure, from facts to findings: `findings`, `versions`, `memory`, `threads`, and the `…_findings` of the others. Facts are
gathered by `libraries`, `machine`, `sockets`, by `models` (which lets worker processes load them) and `operations` (a
process of its own); `session` puts all of it together. This process itself loads no model and no TensorFlow.
"""
