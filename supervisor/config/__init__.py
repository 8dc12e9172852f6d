"""The YAML configuration: keys, values, sources, errors, units, versions."""
