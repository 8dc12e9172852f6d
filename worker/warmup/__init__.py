"""The first runs of a model, before it is ready."""
