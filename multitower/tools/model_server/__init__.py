"""`multitower model-server`: the flags of tensorflow_model_server, and the configuration that they mean.

The command line has the printing, and runs the daemon.
"""
