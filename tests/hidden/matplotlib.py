"""Hides matplotlib from tests on the wheel: see the Makefile."""

raise ImportError("tests/hidden hides matplotlib, since Keras would import it with TensorFlow")
