"""Which errors say that memory did not suffice, whatever library raised them. Pure."""

from __future__ import annotations

_CLASSES = frozenset(
    (
        "MemoryError",  # Python's and numpy's
        "ResourceExhaustedError",  # TensorFlow's
        "OutOfMemoryError",  # PyTorch's
    )
)
_WORDS = ("RESOURCE_EXHAUSTED", "CUDA_ERROR_OUT_OF_MEMORY", "CUDA out of memory")
"""How XLA's, JAX's and others' errors of general classes begin, or what they contain."""


def is_exhausted(error: BaseException) -> bool:
    """The error says that memory did not suffice. Classes are known by name, so that nothing is imported for it."""
    if any(kind.__name__ in _CLASSES for kind in type(error).__mro__):
        return True
    text = str(error.args[0])[:1000] if error.args else ""
    return any(word in text for word in _WORDS)
