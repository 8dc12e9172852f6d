"""`multitower compare`: one model on several devices, served in each of the ways that TensorFlow users choose from.

`measure` serves and measures it by processes and by towers, with `crash` killing one process; `sessions` opens
TensorFlow sessions with a `visible_device_list` each; `results` holds what was found and lays it out as a table.
"""
