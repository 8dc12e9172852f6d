"""`multitower doctor`: examines a configuration on this machine without starting a daemon.

`examination` puts everything in order. Facts are read by `packages`, `gpu_driver`, `machine`, `endpoints`, `models`
(which starts worker processes) and `operations` (which starts a process with TensorFlow). Rules that turn facts into
findings are pure: `limits`, `memory`, and the functions called `findings`. This process itself loads no TensorFlow.
"""
