"""multitower: one TensorFlow model on every GPU of a machine, behind one ZeroMQ endpoint."""
