"""`AsyncClient` against a scripted daemon. The tests of `Client` cover what both share."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable
from typing import Any

import fake_daemon
import numpy as np
import pytest
from fake_daemon import FakeDaemon, Received
from new_threads import NewThreads

from multitower import AsyncClient, Client, DeadlineExceeded, InvalidRequest, NotFound, Unavailable, wire
from multitower.errors import Reason

WAIT_S = 60.0


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await test()

    asyncio.run(bounded(), debug=True)


async def next_of(daemon: FakeDaemon, kind: bytes = wire.INFER) -> Received:
    return await asyncio.to_thread(daemon.next, kind)


def test_requests_run_concurrently() -> None:
    async def test() -> None:
        with FakeDaemon() as daemon:
            async with AsyncClient(daemon.endpoint, timeout=WAIT_S) as client:
                tasks = [client.submit("m", {"x": np.array([number])}) for number in range(50)]
                requests = [await next_of(daemon) for _ in tasks]
                for request in reversed(requests):
                    daemon.reply(request, fake_daemon.outputs(request.id, y=request.inputs["x"] * 2))
                answers = await asyncio.gather(*tasks)
                assert [answer["y"].tolist() for answer in answers] == [[2 * number] for number in range(50)]

    run(test)


def test_the_request_has_all_arguments() -> None:
    async def test() -> None:
        with FakeDaemon() as daemon:
            async with AsyncClient(daemon.endpoint) as client:
                task = client.submit("m", {"x": 1.0}, outputs=["y"], version="7", timeout=1.5, priority=3)
                header = (await next_of(daemon)).json
                assert header["parameters"] == {"timeout": 1_500_000, "priority": 3}
                assert (header["model_version"], header["outputs"]) == ("7", [{"name": "y"}])
                task.cancel()

    run(test)


def test_arrays_may_change_once_the_task_has_begun() -> None:
    async def test() -> None:
        with FakeDaemon() as daemon:
            async with AsyncClient(daemon.endpoint, timeout=WAIT_S) as client:
                x = np.zeros(1 << 16, np.float32)
                task = client.submit("m", {"x": x})
                await asyncio.sleep(0)
                x[:] = -1
                assert not (await next_of(daemon)).inputs["x"].any()
                task.cancel()

    run(test)


ASKED: dict[str, tuple[list[str], Any]] = {
    "live": ([], True),
    "ready": ([], True),
    "server_ready": ([], {"ready": True, "live": True}),
    "server_metadata": ([], fake_daemon.METADATA),
    "status": ([], {"ready": True, "live": True}),
    "statistics": (["m"], {"ready": True, "live": True}),
    "model_ready": (["m"], True),
    "metadata": (["m", "3"], {"ready": True, "live": True}),
    "model_config": (["m"], {"ready": True, "live": True}),
}


@pytest.mark.parametrize("method", ASKED)
def test_queries_return_what_the_client_returns(method: str) -> None:
    arguments, wanted = ASKED[method]
    kinds: list[tuple[bytes, Any]] = []

    def answer(request: Received) -> list[bytes]:
        kinds.append((request.kind, request.json))
        return fake_daemon.ok(request.id, {"ready": True, "live": True})

    async def test() -> None:
        with FakeDaemon(answer) as daemon:
            async with AsyncClient(daemon.endpoint) as client:
                assert await getattr(client, method)(*arguments) == wanted
            with Client(daemon.endpoint) as other:  # asks the same
                assert getattr(other, method)(*arguments) == wanted
        assert kinds[: len(kinds) // 2] == kinds[len(kinds) // 2 :]

    run(test)


def test_it_has_the_methods_of_the_client() -> None:
    public = [name for name in dir(Client) if not name.startswith("_")]
    assert [name for name in dir(AsyncClient) if not name.startswith("_")] == public


def test_errors_have_their_classes() -> None:
    def answer(request: Received) -> list[bytes]:
        return fake_daemon.error(request.id, Reason.MODEL_UNKNOWN, "there is none")

    async def test() -> None:
        with FakeDaemon(answer) as daemon:
            async with AsyncClient(daemon.endpoint) as client:
                with pytest.raises(NotFound, match="there is none"):
                    await client.infer("m", {"x": 1.0})
                with pytest.raises(NotFound, match="there is none"):
                    await client.metadata("m")
                with pytest.raises(InvalidRequest, match="'x'"):
                    await client.infer("m", {"x": object()})

    run(test)


@pytest.mark.parametrize("how", ["task", "timeout"])
def test_cancelling_the_task_cancels_the_request(how: str) -> None:
    async def test() -> None:
        with FakeDaemon() as daemon:
            async with AsyncClient(daemon.endpoint, timeout=WAIT_S) as client:
                if how == "task":
                    task = client.submit("m", {"x": 1.0})
                    request = await next_of(daemon)
                    task.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await task
                else:
                    with pytest.raises(TimeoutError):
                        async with asyncio.timeout(0.2):
                            await client.infer("m", {"x": 1.0})
                    request = await next_of(daemon)
                assert (await next_of(daemon, wire.CANCEL)).id == request.id
                await _works(client, daemon)

    run(test)


def test_a_request_without_an_answer_fails_at_its_deadline() -> None:
    async def test() -> None:
        with FakeDaemon() as daemon:
            async with AsyncClient(daemon.endpoint) as client:
                with pytest.raises(DeadlineExceeded):
                    await client.infer("m", {"x": 1.0}, timeout=0.1)
                request = await next_of(daemon)
                assert (await next_of(daemon, wire.CANCEL)).id == request.id

    run(test)


def test_the_loop_runs_while_requests_wait_for_others() -> None:
    async def test() -> None:
        with FakeDaemon() as daemon:
            async with AsyncClient(daemon.endpoint, timeout=WAIT_S, max_outstanding=1) as client:
                first = client.submit("m", {"x": 1.0})
                request = await next_of(daemon)
                with pytest.raises(DeadlineExceeded, match="max_outstanding"):
                    await client.infer("m", {"x": 2.0}, timeout=0.1)
                second = client.submit("m", {"x": 3.0})
                await asyncio.sleep(0)
                second.cancel()  # while it waits for room, which stays
                third = client.submit("m", {"x": 4.0})
                daemon.reply(request, fake_daemon.echo(request))
                assert (await first)["x"].tolist() == 1.0
                request = await next_of(daemon)
                assert request.inputs["x"].tolist() == 4.0
                daemon.reply(request, fake_daemon.echo(request))
                assert (await third)["x"].tolist() == 4.0

    run(test)


def test_waiting_for_others_counts_towards_the_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        with FakeDaemon() as daemon:
            async with AsyncClient(daemon.endpoint, timeout=WAIT_S, max_outstanding=1) as client:
                start, deadlines = client._requests.start_infer, []

                def note_deadline(request: Any, seconds: float, deadline: float) -> Any:
                    deadlines.append(deadline)
                    return start(request, seconds, deadline)

                monkeypatch.setattr(client._requests, "start_infer", note_deadline)
                first = client.submit("m", {"x": 1.0})
                request = await next_of(daemon)
                second = client.submit("m", {"x": 2.0}, timeout=WAIT_S)
                await asyncio.sleep(0)  # it waits for room from here on
                replied_at = time.monotonic()
                daemon.reply(request, fake_daemon.echo(request))
                await first
                request = await next_of(daemon)
                daemon.reply(request, fake_daemon.echo(request))
                await second
                assert deadlines[1] <= replied_at + WAIT_S, "the whole time begins when there is room"

    run(test)


def test_a_lost_connection_and_close_fail_what_is_outstanding() -> None:
    async def test() -> None:
        for how in ("connection_lost", "closed"):
            daemon = FakeDaemon()
            client = AsyncClient(daemon.endpoint, timeout=WAIT_S)
            tasks = [client.submit("m", {"x": 1.0}) for _ in range(3)]
            for _ in tasks:
                await next_of(daemon)
            if how == "closed":
                await client.close()
            await asyncio.to_thread(daemon.close)
            errors = await asyncio.gather(*tasks, return_exceptions=True)
            assert [getattr(error, "reason", error) for error in errors] == [how] * 3
            await client.close()
            with pytest.raises(Unavailable) as error:
                await client.infer("m", {"x": 1.0})
            assert error.value.reason == "closed"

    run(test)


def test_wait_until_ready_waits_for_the_daemon_and_its_models(tmp_socket: str) -> None:
    answers = iter([False, True])

    def answer(request: Received) -> list[bytes]:
        return fake_daemon.ok(request.id, {"ready": next(answers), "slots_ready": 0, "slots_total": 1})

    async def test() -> None:
        async with AsyncClient(tmp_socket, connect_timeout=0.05) as client:
            with pytest.raises(Unavailable, match="no daemon listens"):
                await client.wait_until_ready(0.2)
            waiting = asyncio.create_task(client.wait_until_ready(WAIT_S))
            await asyncio.sleep(0)
            with FakeDaemon(answer, tmp_socket):
                await waiting
            assert list(answers) == []

    run(test)


def test_a_loop_that_is_closed_early_leaves_the_connection_intact() -> None:
    """The answer arrives for a closed loop; another loop can use the client."""
    with FakeDaemon() as daemon:
        client = AsyncClient(daemon.endpoint, timeout=WAIT_S)
        loop = asyncio.new_event_loop()

        async def start() -> asyncio.Task[Any]:
            task = client.submit("m", {"x": 1.0})
            await asyncio.sleep(0)
            return task

        task = loop.run_until_complete(start())
        request = daemon.next()
        loop.close()
        daemon.reply(request, fake_daemon.echo(request))

        async def test() -> None:
            await _works(client, daemon)
            await client.close()

        run(test)
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        del task
        gc.collect()


def test_closing_a_coroutine_affects_no_other_request() -> None:
    async def test() -> None:
        failures: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
        with FakeDaemon() as daemon:
            async with AsyncClient(daemon.endpoint, timeout=WAIT_S) as client:
                closed = client.infer("m", {"x": 1.0})
                closed.send(None)  # type: ignore[attr-defined]
                await next_of(daemon)
                closed.close()  # type: ignore[attr-defined]
                await next_of(daemon, wire.CANCEL)
                await _works(client, daemon)
        assert not failures

    run(test)


def test_the_thread_ends_with_the_client() -> None:
    async def test() -> None:
        threads = NewThreads()
        with FakeDaemon(fake_daemon.echo) as daemon:
            async with AsyncClient(daemon.endpoint) as client:
                await client.infer("m", {"x": 1.0})
                assert len(threads.named("multitower-client")) == 1
            assert threads.named("multitower-client") == []

    run(test)


async def _works(client: AsyncClient, daemon: FakeDaemon) -> None:
    task = client.submit("m", {"x": 2.0})
    request = await next_of(daemon)
    daemon.reply(request, fake_daemon.echo(request))
    assert (await task)["x"].tolist() == 2.0
