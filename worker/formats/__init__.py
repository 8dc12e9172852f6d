"""Model formats: one file each; `loader` picks the one for a model. TensorFlow is imported here and in warmup only."""
