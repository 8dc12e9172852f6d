"""Whether running a model changes something that lasts: a variable, a table, a queue or a file. Looks at graphs."""

from __future__ import annotations

from typing import Final

from .model import CallableModel, Model

_WRITING: Final = (
    *("Assign", "CountUpTo", "Apply", "SparseApply", "ResourceApply", "ResourceSparseApply", "ResourceScatter"),
    *("ResourceStridedSliceAssign", "ResourceCountUpTo", "StridedSliceAssign"),
    *("ScatterAdd", "ScatterSub", "ScatterMul", "ScatterDiv", "ScatterMin", "ScatterMax", "ScatterUpdate"),
    *("ScatterNdAdd", "ScatterNdSub", "ScatterNdUpdate", "ScatterNdMax", "ScatterNdMin"),
    *("LookupTableInsert", "LookupTableImport", "LookupTableRemove", "QueueEnqueue", "QueueDequeue", "Stage"),
    *("PyFunc", "EagerPyFunc", "Save", "Write"),
)
"""How the names of operations begin that change something, or call code that may."""


def may_change_state(model: Model) -> bool:
    """Whether a call of a model of TensorFlow may change something that lasts.

    A handler may repeat calls, as its guide says, so that it does not count.
    """
    if not isinstance(model, CallableModel):
        return False
    from .graph_nodes import needed_nodes  # imports TensorFlow, which this process may have no use for

    try:
        # Not all nodes: the graph of a session has those that restore and save its variables, too.
        return any(node.op.startswith(_WRITING) for node in needed_nodes(model.graph, model.call.fetched))
    except Exception:  # noqa: BLE001  a graph of more than 2 GiB cannot be looked at
        return True
