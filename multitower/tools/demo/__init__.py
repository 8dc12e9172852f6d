"""`multitower demo`: trains a model, serves it on two CPU workers, and kills one under load.

`steps` are the parts that `cli.demo` runs and prints; `model` is the program that trains the model.
"""
