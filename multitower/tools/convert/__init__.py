"""From TensorFlow Serving's files to ours; `cli.convert` is the command.

`text_format` reads protobuf's text format, `serving` says what each field means here, `yaml_text` writes it down. All
of it is pure: text goes in, text and notes come out.
"""
