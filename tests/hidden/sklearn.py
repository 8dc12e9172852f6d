"""Hides scikit-learn from tests on the wheel: see the Makefile."""

raise ImportError("tests/hidden hides scikit-learn, since Keras would import it with TensorFlow")
