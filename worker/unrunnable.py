"""Recognises errors that every call of a model would raise in this process, whatever its inputs.

A warm-up with made-up inputs may fail because the model rejects these inputs; such a model is served. The errors
recognised here come from TensorFlow before it looks at any value: an operation has no implementation in this process.
"""

from __future__ import annotations

import re
from typing import Final

from .model_errors import LoadError

_MAX_NAMES: Final = 8
_MAX_MESSAGE: Final = 20_000
_NOT_REGISTERED: Final = re.compile(r"Op type not registered '([^']+)'")
_NO_KERNEL: Final = re.compile(
    r"No OpKernel was registered to support Op '(?P<op>[^']+)'(?P<rest>.*)"
    r"|Could not find device for node: \{\{node [^}]*\}\} = (?P<op_2>\w+)(?P<rest_2>.*)"
    r"|Cannot assign a device for operation (?P<node>[^ :]+)(?P<rest_3>.*)",
    re.DOTALL,
)
_NO_XLA_KERNEL: Final = re.compile(
    r"Detected unsupported operations when trying to compile graph [^:]*: (\w+) \(No registered"
)
_SEVERAL_KERNELS: Final = re.compile(
    r"Multiple OpKernel registrations match NodeDef[^']*'.*?\{\{node ([^}]*)\}\}", re.DOTALL
)
_UNINITIALIZED: Final = re.compile(
    r"Table not initialized|Attempting to use uninitialized value|This could mean that the variable was uninitialized"
)
_GPU_KERNEL: Final = re.compile(r"device='GPU'")
_GPU_DEVICE: Final = re.compile(r"Registered devices: \[[^\]]*GPU")


class UnrunnableError(LoadError):
    """No request to the model, or to its signature, can succeed in this process.

    Args:
        cause: why, and what to do about it.
        needs_gpu: whether it could succeed in a worker with a GPU.

    Attributes:
        needs_gpu: as given.
    """

    def __init__(self, cause: str, *, needs_gpu: bool = False) -> None:
        super().__init__(cause)
        self.needs_gpu = needs_gpu


def classify(error: BaseException, *, may_initialize: bool = False) -> UnrunnableError | None:
    """What an exception shows about all calls of its model.

    Args:
        error: what loading or calling the model raised.
        may_initialize: whether a request may initialise the model's tables and variables, by another signature.

    Returns:
        Why no call can succeed; None where other inputs might succeed, or nothing is known about the error.
    """
    message = _message(error)
    if (found := _NOT_REGISTERED.search(message)) is not None:
        return unregistered(found[1])
    if not _is_of_tensorflow(error):
        return None
    if (found := _NO_KERNEL.search(message)) is not None:
        rest = found["rest"] or found["rest_2"] or found["rest_3"] or ""
        needs_gpu = bool(_GPU_KERNEL.search(rest)) and not _GPU_DEVICE.search(rest)
        return without_kernel(found["op"] or found["op_2"] or f"of the node {found['node']}", needs_gpu=needs_gpu)
    if (found := _NO_XLA_KERNEL.search(message)) is not None:
        return UnrunnableError(
            f"XLA cannot compile the operation {found[1]}, which is in a function that was saved with "
            "jit_compile=True: export the model without it"
        )
    if (found := _SEVERAL_KERNELS.search(message)) is not None:
        return UnrunnableError(
            f"two libraries have registered the operation of the node {found[1]}: name the same file in the "
            "`custom_ops` of all models that use it"
        )
    if not may_initialize and (found := _UNINITIALIZED.search(message)) is not None:
        return UnrunnableError(
            "it uses a table or a variable that nothing initialises: export the model with its initialisers "
            f"(TensorFlow: {found[0]})"
        )
    return None


def unregistered(*operations: str) -> UnrunnableError:
    """The error for operations that TensorFlow does not know in this process."""
    more = f" and {len(operations) - _MAX_NAMES} more" if len(operations) > _MAX_NAMES else ""
    names = f"{', '.join(operations[:_MAX_NAMES])}{more}"
    subject = f"the operation {names} is" if len(operations) == 1 else f"the operations {names} are"
    return UnrunnableError(
        f"{subject} not registered in TensorFlow: if a library of custom operations has it, name that library (.so) "
        "in the model's `custom_ops`"
    )


def without_kernel(operation: str, *, needs_gpu: bool) -> UnrunnableError:
    """The error for an operation that has no kernel for the worker's devices and the datatypes of its node."""
    if needs_gpu:
        return UnrunnableError(
            f"the operation {operation} has a kernel for GPUs only, and this worker has none: serve the model on "
            "GPUs, or export it for CPUs",
            needs_gpu=True,
        )
    return UnrunnableError(
        f"the operation {operation} has no kernel for this worker's devices and its datatypes: export the model "
        "with other operations or datatypes"
    )


def _message(error: BaseException) -> str:
    try:
        return str.__getitem__(str(error), slice(_MAX_MESSAGE))
    except BaseException:  # noqa: BLE001  a class of the user's own may raise anything here
        return ""


def _is_of_tensorflow(error: BaseException) -> bool:
    return any(kind.__module__.startswith("tensorflow.") for kind in type(error).__mro__[:-1])
