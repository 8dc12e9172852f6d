"""`multitower demo`: a model is trained, served, and a worker killed under load."""
