"""The daemon's parent process: configuration, devices, supervision, routing. It never imports TensorFlow."""
