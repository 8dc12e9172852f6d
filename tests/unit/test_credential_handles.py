"""Handles: for each credential one, void once its principal changes or nobody has shown the credential for a minute."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from multitower.bearer_tokens import new_token
from multitower.errors import MultitowerError
from multitower.supervisor.config.principals import Principal, Principals, Role
from multitower.supervisor.loop.background import BackgroundJobs
from multitower.supervisor.security import credential_handles as module
from multitower.supervisor.security.authentication_failures import Failure, Failures
from multitower.supervisor.security.authenticator import Authenticator
from multitower.supervisor.security.credential_handles import LIFETIME_S, Handles
from multitower.supervisor.security.tokens import TokenVerifier

INFER = frozenset({Role.INFER})
TOKEN, HASH = new_token("service")
SERVICE = Principal("service", INFER, token_hashes=(HASH,))
BROWSER = Principal("browser", INFER)


class Inline(BackgroundJobs):
    """Runs each job at once; with `failure` none can be run."""

    def __init__(self, failure: Exception | None = None) -> None:
        super().__init__()
        self._failure = failure

    def run(self, job: Any, then: Any) -> None:
        then(self._failure or job())


class Scene:
    def __init__(self, jobs: BackgroundJobs) -> None:
        self.now = 100.0
        self.handles = Handles()
        self.failures = Failures(self.now)
        verifier = TokenVerifier(jobs, lambda: self.now)
        self.authenticator = Authenticator(verifier, self.handles, self.failures, lambda: self.now)
        self.know(SERVICE, BROWSER)

    def know(self, *principals: Principal) -> None:
        self.authenticator.apply(Principals(principals))

    def ask(self, **header: Any) -> dict[str, Any]:
        answers: list[dict[str, Any] | MultitowerError] = []
        self.authenticator.answer(header, answers.append)
        (answer,) = answers
        return {"reason": answer.reason, **answer.details} if isinstance(answer, MultitowerError) else answer

    def who(self, handle: str) -> str | None:
        peer = self.handles.find(handle.encode(), self.now)
        return peer.name if peer is not None else None


@pytest.fixture
def scene() -> Iterator[Scene]:
    with contextlib.closing(Inline()) as jobs:
        yield Scene(jobs)


def test_a_token_and_a_certificate_get_handles_of_their_principals(scene: Scene) -> None:
    by_token = scene.ask(token=TOKEN, **{"from": "10.0.0.1:5"})
    assert by_token["principal"] == "service"
    assert by_token["expires_ms"] == 60_000
    by_name = scene.ask(certificate_name="browser", **{"from": "10.0.0.1:5"})
    assert len(by_token["handle"]) == len(by_name["handle"]) == 16
    assert (scene.who(by_token["handle"]), scene.who(by_name["handle"])) == ("service", "browser")
    peer = scene.handles.find(by_token["handle"].encode(), scene.now)
    assert peer is not None
    assert (peer.origin, peer.principal) == ("10.0.0.1:5", SERVICE)
    assert not scene.failures.counts


def test_the_same_credential_keeps_its_handle_and_makes_it_last(scene: Scene) -> None:
    handle = scene.ask(token=TOKEN)["handle"]
    scene.now += LIFETIME_S - 1
    assert scene.ask(token=TOKEN)["handle"] == handle
    scene.now += LIFETIME_S - 1
    assert scene.who(handle) == "service"
    scene.now += 1
    assert scene.who(handle) is None
    assert scene.ask(token=TOKEN)["handle"] != handle


@pytest.mark.parametrize(
    ("header", "failure"),
    [
        ({"token": TOKEN + "A"}, Failure.WRONG_TOKEN),
        ({"token": TOKEN.replace("service", "browser")}, Failure.UNKNOWN_PRINCIPAL),
        ({"token": TOKEN.replace("service", "nobody")}, Failure.UNKNOWN_PRINCIPAL),
        ({"token": ""}, Failure.MALFORMED_TOKEN),
        ({"token": "t" * 10_000}, Failure.MALFORMED_TOKEN),
        ({"certificate_name": "nobody"}, Failure.UNKNOWN_CERTIFICATE),
        ({"certificate_name": ""}, Failure.UNKNOWN_CERTIFICATE),
        ({"certificate_name": "browser" + "x" * 10_000}, Failure.UNKNOWN_CERTIFICATE),
    ],
)
def test_what_is_refused_is_answered_with_the_same_words_and_counted(
    scene: Scene, header: dict[str, Any], failure: Failure
) -> None:
    assert scene.ask(**header, interface="grpc", **{"from": "10.0.0.1:5"}) == {"reason": "unauthenticated"}
    assert scene.failures.counts == {("grpc", failure): 1}


@pytest.mark.parametrize(
    "header",
    [{}, {"token": TOKEN, "certificate_name": "browser"}, {"token": 1}, {"certificate_name": ["browser"]},
     {"token": TOKEN, "from": 7}],
)  # fmt: skip
def test_a_header_that_is_malformed(scene: Scene, header: dict[str, Any]) -> None:
    with pytest.raises(MultitowerError, match=r"INVALID_ARGUMENT"):
        scene.ask(**header)


def test_an_interface_is_one_of_few_whatever_a_header_says(scene: Scene) -> None:
    scene.ask(certificate_name="nobody", interface="x" * 1000)
    scene.ask(certificate_name="nobody", interface=["http"])
    assert scene.failures.counts == {("gateway", Failure.UNKNOWN_CERTIFICATE): 2}


def test_handles_are_void_once_their_principal_is_changed_or_removed(scene: Scene) -> None:
    service, browser = scene.ask(token=TOKEN)["handle"], scene.ask(certificate_name="browser")["handle"]
    scene.know(Principal("service", INFER, token_hashes=(HASH,)), BROWSER)  # equal: nothing changes
    assert (scene.who(service), scene.who(browser)) == ("service", "browser")
    scene.know(Principal("service", INFER, models=("digits",), token_hashes=(HASH,)), BROWSER)
    assert (scene.who(service), scene.who(browser)) == (None, "browser")
    changed = scene.ask(token=TOKEN)["handle"]
    peer = scene.handles.find(changed.encode(), scene.now)
    assert peer is not None
    assert not peer.may_use("other")
    scene.know(BROWSER)
    assert scene.who(changed) is None
    assert scene.ask(token=TOKEN) == {"reason": "unauthenticated"}


def test_a_source_with_too_many_wrong_tokens_is_told_when_to_try_again(scene: Scene) -> None:
    answers = [scene.ask(token=f"nobody.{number}") for number in range(11)]
    assert answers[-2] == {"reason": "unauthenticated"}
    assert answers[-1] == {"reason": "queue_full", "limit": "authentication", "retry_after_ms": 2000}
    assert scene.failures.counts[("gateway", Failure.TOO_MANY)] == 1


def test_a_client_that_finds_the_queue_of_tokens_full_has_reached_no_limit_of_its_own() -> None:
    with contextlib.closing(Inline(RuntimeError("can't start new thread"))) as jobs:
        assert Scene(jobs).ask(token=TOKEN) == {"reason": "queue_full", "retry_after_ms": 1000}


def test_the_number_of_handles_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_HANDLES", 2)
    handles = Handles()
    given = [handles.give(BROWSER, number, "", float(number)) for number in range(3)]
    assert [handles.find(handle, 3.0) is not None for handle in given] == [False, True, True]
    assert handles.give(BROWSER, 0, "", 3.0) != given[0]


def test_handles_nobody_asks_for_any_more_are_forgotten() -> None:
    handles = Handles()
    handles.give(BROWSER, "old", "", 0.0)
    handles.give(BROWSER, "new", "", LIFETIME_S)
    assert len(handles._by_handle) == len(handles._by_credential) == 1
