"""Model formats: one file each, and one registry. TensorFlow is imported here and in warmup only."""
