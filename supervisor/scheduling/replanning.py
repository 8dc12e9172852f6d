"""Gives open requests other plans, after it turned out that their model must be batched otherwise.

A request that waits is moved to the end of its level of urgency, together with all others of its interface. One that a
worker executes keeps its batch; its new plan matters if the worker dies and it runs again. A split request starts again
as a whole: parts of it may belong to no request any more.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from .open_requests import OpenRequests
from .queue import ModelQueue
from .request import Phase, Plan, Request


def replan_requests(
    queue: ModelQueue,
    open_requests: OpenRequests,
    interface: int,
    versions: Collection[str],
    replan: Callable[[Plan], Plan],
) -> None:
    """Changes the plans of all open requests of a model that were checked against an interface.

    Args:
        queue: the model's queue.
        open_requests: all open requests.
        interface: as in the batch keys of the requests.
        versions: likewise.
        replan: returns the new plan for a former one.
    """

    def concerns(request: Request) -> bool:
        key = request.plan.key
        return request.plan.model == queue.model and key.interface == interface and key.version in versions

    # Suspects wait apart, without regard to their plans. But a request larger than a batch waits with the others, also
    # if it started again after a worker had died with a part of it.
    waiting = [
        request for request in queue if request.parent is None and request not in queue.suspects and concerns(request)
    ]
    for whole in [request for request in open_requests.all() if concerns(request)]:
        if whole.split is not None:
            open_requests.join_again(whole)
            waiting.insert(0, whole)
        elif whole.phase is Phase.WAITING and whole not in queue.suspects:
            queue.remove(whole)
        _change_plan(whole, replan)
    for whole in dict.fromkeys(waiting):
        whole.phase = Phase.WAITING
        if whole.deaths and whole.rows > whole.plan.key.max_batch_size > 0:
            queue.push(whole, first=True)
        elif whole.deaths:
            queue.push_suspect(whole)
        else:
            queue.push(whole)


def _change_plan(request: Request, replan: Callable[[Plan], Plan]) -> None:
    former, request.plan = request.plan, replan(request.plan)
    request.rows = request.plan.rows
    if former.sizes_frame is not None and request.plan.sizes_frame is None and request.frames:
        request.frames = request.frames[:-1]
