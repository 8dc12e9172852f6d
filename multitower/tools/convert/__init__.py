"""Converts TensorFlow Serving's configuration files to this project's; `cli.convert` is the command.

`text_format` parses protobuf's text format, `serving` translates each field, `yaml_text` writes YAML. All of it is
pure: it turns text into text and notes.
"""
