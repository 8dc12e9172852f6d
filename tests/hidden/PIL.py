"""Hides Pillow from tests on the wheel: see the Makefile."""

raise ImportError("tests/hidden hides Pillow, since Keras would import it with TensorFlow")
