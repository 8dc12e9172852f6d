"""Hides SciPy from tests on the wheel: see the Makefile."""

raise ImportError("tests/hidden hides SciPy, since Keras would import it with TensorFlow")
