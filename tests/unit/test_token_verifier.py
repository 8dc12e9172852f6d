"""Verification of tokens: once for each, off the loop, in turns, and bounded, however many wrong ones arrive."""

from __future__ import annotations

import contextlib
import itertools
import select
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from multitower import bearer_tokens
from multitower.bearer_tokens import TokenHash, hash_secret, new_token
from multitower.supervisor.config.principals import Principal, Role
from multitower.supervisor.loop.background import BackgroundJobs
from multitower.supervisor.security import tokens
from multitower.supervisor.security.authentication_failures import Failure
from multitower.supervisor.security.tokens import Refusal, TokenVerifier, source_of

SOON_S = 20.0


def principal(name: str, token_hashes: tuple[TokenHash, ...] = ()) -> Principal:
    return Principal(name, frozenset(Role), token_hashes=token_hashes)


class Hash(TokenHash):
    """A hash that costs nothing to compare: its salt is the secret. Counts comparisons in `compared`."""

    compared: list[bytes] = []  # noqa: RUF012  shared by all on purpose

    def matches(self, secret: str) -> bool:
        Hash.compared.append(self.salt)
        return secret.encode() == self.salt


def cheap(secret: str) -> Hash:
    return Hash(10, 8, 1, secret.encode(), b"")


class Jobs(BackgroundJobs):
    """Runs jobs when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[tuple[Callable[[], Any], Callable[[Any], None]]] = []
        self.most = 0

    def run(self, job: Callable[[], Any], then: Callable[[Any], None]) -> None:
        self.waiting.append((job, then))
        self.most = max(self.most, len(self.waiting))

    def finish(self, outcome: Exception | None = None) -> None:
        job, then = self.waiting.pop(0)
        then(job() if outcome is None else outcome)


class Scene:
    """A verifier with a clock, and what it answered, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, jobs: Jobs) -> None:
        monkeypatch.setattr(tokens, "dummy_hash", lambda _=None: cheap("dummy"))
        Hash.compared.clear()
        self.now = 100.0
        self.jobs = jobs
        self.answers: list[tuple[str, str | Refusal]] = []
        self.verifier = TokenVerifier(jobs, lambda: self.now)
        self.know({"a": ("one",), "b": ("two", "three"), "key-only": ()})

    def know(self, secrets: dict[str, Sequence[str]]) -> None:
        self.verifier.set_principals({name: principal(name, tuple(map(cheap, each))) for name, each in secrets.items()})

    def ask(self, token: str, source: str = "10.0.0.1:1") -> None:
        def done(outcome: Principal | Refusal) -> None:
            self.answers.append((token, outcome if isinstance(outcome, Refusal) else outcome.name))

        self.verifier.verify(token, source, done)

    def run(self) -> None:
        """Runs all jobs, and lets the time pass that the verifier waits."""
        while self.jobs.waiting or self.verifier.due < float("inf"):
            if not self.jobs.waiting:
                self.now = max(self.now, self.verifier.due)
                self.verifier.tick(self.now)
            while self.jobs.waiting:
                self.jobs.finish()

    def pop(self) -> list[tuple[str, str | Refusal]]:
        answers, self.answers = self.answers, []
        return answers


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Any:
    with contextlib.closing(Jobs()) as jobs:
        yield Scene(monkeypatch, jobs)


WRONG = Refusal(Failure.WRONG_TOKEN, "a")


@pytest.mark.parametrize(
    ("token", "answer"),
    [
        ("a.one", "a"),
        ("b.two", "b"),
        ("b.three", "b"),
        ("a.two", Refusal(Failure.WRONG_TOKEN, "a")),
        ("key-only.one", Refusal(Failure.UNKNOWN_PRINCIPAL, "key-only")),
        ("nobody.one", Refusal(Failure.UNKNOWN_PRINCIPAL)),
        ("one", Refusal(Failure.MALFORMED_TOKEN)),
        ("", Refusal(Failure.MALFORMED_TOKEN)),
        ("a.", Refusal(Failure.MALFORMED_TOKEN)),
    ],
)
def test_who_a_token_belongs_to(scene: Scene, token: str, answer: str | Refusal) -> None:
    scene.ask(token)
    scene.run()
    assert scene.pop() == [(token, answer)]


def test_every_wrong_token_takes_as_many_comparisons_whether_its_principal_exists_or_not(scene: Scene) -> None:
    counts = set()
    for token in ("a.wrong", "b.wrong", "key-only.wrong", "nobody.wrong"):
        Hash.compared.clear()
        scene.ask(token)
        scene.run()
        counts.add(len(Hash.compared))
    assert counts == {2}


def test_a_token_is_compared_once(scene: Scene) -> None:
    for token in ("a.one", "a.wrong"):
        scene.ask(token)
        scene.run()
        compared = len(Hash.compared)
        scene.ask(token)
        assert not scene.jobs.waiting
        assert len(Hash.compared) == compared
    assert scene.pop() == [("a.one", "a"), ("a.one", "a"), ("a.wrong", WRONG), ("a.wrong", WRONG)]


def test_askers_for_the_same_token_share_one_comparison(scene: Scene) -> None:
    for _ in range(3):
        scene.ask("a.one")
    assert len(scene.jobs.waiting) == 1
    scene.run()
    assert scene.pop() == [("a.one", "a")] * 3
    assert len(Hash.compared) == 1


def test_a_token_that_is_taken_away_is_refused_at_once_and_one_that_stays_is_not_compared_again(scene: Scene) -> None:
    for token in ("b.two", "b.three"):
        scene.ask(token)
        scene.run()
    scene.pop()
    compared = len(Hash.compared)
    scene.know({"b": ("three", "four")})
    scene.ask("b.three")
    assert scene.pop() == [("b.three", "b")]
    assert len(Hash.compared) == compared
    scene.ask("b.two")
    scene.run()
    assert scene.pop() == [("b.two", Refusal(Failure.WRONG_TOKEN, "b"))]


def test_the_token_of_a_principal_that_is_removed_is_refused_without_a_comparison(scene: Scene) -> None:
    scene.ask("a.one")
    scene.run()
    scene.pop()
    scene.know({})
    scene.ask("a.one")
    assert scene.pop() == [("a.one", Refusal(Failure.UNKNOWN_PRINCIPAL))]


def test_a_token_that_was_refused_is_compared_again_once_principals_have_changed(scene: Scene) -> None:
    scene.ask("c.new")
    scene.run()
    scene.know({"c": ("new",)})
    scene.ask("c.new")
    scene.run()
    assert scene.pop() == [("c.new", Refusal(Failure.UNKNOWN_PRINCIPAL)), ("c.new", "c")]


def test_principals_may_change_while_a_token_is_compared(scene: Scene) -> None:
    scene.ask("c.new")
    scene.ask("a.one", "10.0.0.2:1")
    scene.know({"c": ("new",)})
    scene.run()
    assert scene.pop() == [("a.one", Refusal(Failure.UNKNOWN_PRINCIPAL)), ("c.new", "c")]


def test_one_token_is_compared_at_a_time_and_sources_take_turns(scene: Scene) -> None:
    for secret in ("1", "2", "3"):
        scene.ask(f"a.{secret}", "10.0.0.1:1")
    scene.ask("b.two", "10.0.0.2:1")
    scene.ask("b.three", "10.0.0.3:1")
    scene.run()
    assert [token for token, _ in scene.pop()] == ["a.1", "a.2", "b.two", "b.three", "a.3"]
    assert scene.jobs.most == 1


def test_a_source_has_only_some_tokens_waiting(scene: Scene) -> None:
    # One is being compared, the others wait.
    for secret in range(tokens.MAX_WAITING_OF_SOURCE + 2):
        scene.ask(f"a.{secret}")
    assert scene.pop() == [("a.9", Refusal(Failure.TOO_MANY, retry_after_s=tokens.FULL_RETRY_S))]


def test_a_source_that_sends_many_wrong_tokens_is_refused_for_a_time_and_its_verified_token_is_not(
    scene: Scene,
) -> None:
    scene.ask("a.one")
    scene.run()
    for secret in range(tokens.WRONG_OF_SOURCE):
        scene.ask(f"a.{secret}")
        scene.run()
    scene.pop()
    scene.ask("b.two", "10.0.0.1:2")
    assert scene.pop() == [("b.two", Refusal(Failure.TOO_MANY, retry_after_s=2.0, of_source=True))]
    scene.ask("a.one", "10.0.0.1:3")
    scene.ask("a.0", "10.0.0.1:3")  # known to be wrong: costs nothing
    scene.ask("b.two", "10.0.0.2:1")  # another source
    scene.run()
    assert scene.pop() == [("a.one", "a"), ("a.0", WRONG), ("b.two", "b")]
    scene.now += 2.0
    scene.ask("b.three", "10.0.0.1:2")
    scene.run()
    assert scene.pop() == [("b.three", "b")]


def test_while_many_sources_send_wrong_tokens_the_next_one_waits_but_is_examined(scene: Scene) -> None:
    for source in range(tokens.WRONG_AT_ONCE):
        scene.ask("a.wrong" + str(source), f"10.0.1.{source}:1")
        scene.run()
    began = scene.now
    scene.pop()
    scene.ask("b.two", "10.0.0.2:1")
    assert not scene.jobs.waiting
    assert scene.verifier.due == pytest.approx(began + 1 / tokens.WRONG_PER_S)
    scene.run()
    assert scene.pop() == [("b.two", "b")]


def test_one_source_with_many_waiting_gives_way_and_the_number_is_bounded(scene: Scene) -> None:
    limit = tokens.MAX_WAITING
    scene.ask("a.running", "10.0.0.1:1")
    for number in range(limit):
        source = number // tokens.MAX_WAITING_OF_SOURCE
        scene.ask(f"a.{number}", f"10.0.1.{source}:1")
    assert scene.pop() == []
    scene.ask("b.two", "10.0.0.2:1")
    (dropped,) = scene.pop()
    assert dropped[1] == Refusal(Failure.TOO_MANY, retry_after_s=tokens.FULL_RETRY_S)
    assert dropped[0] != "b.two"


def test_sources_with_one_waiting_each_do_not_drop_each_other(scene: Scene) -> None:
    scene.ask("a.running", "10.0.0.1:1")
    for number in range(tokens.MAX_WAITING):
        scene.ask(f"a.{number}", f"10.0.1.{number}:1")
    scene.ask("b.two", "10.0.0.2:1")
    assert scene.pop() == [("b.two", Refusal(Failure.TOO_MANY, retry_after_s=tokens.FULL_RETRY_S))]


def test_a_thread_that_cannot_be_started_refuses_nobody_for_good(scene: Scene) -> None:
    scene.ask("a.one")
    scene.jobs.finish(RuntimeError("can't start new thread"))
    assert scene.pop() == [("a.one", Refusal(Failure.TOO_MANY, retry_after_s=tokens.FULL_RETRY_S))]
    scene.ask("a.one")
    scene.run()
    assert scene.pop() == [("a.one", "a")]


def test_what_is_remembered_is_bounded(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "MAX_REFUSED", 2)
    monkeypatch.setattr(tokens, "WRONG_OF_SOURCE", 10**6)
    for secret in ("1", "2", "3"):
        scene.ask(f"a.{secret}")
        scene.run()
    compared = len(Hash.compared)
    scene.ask("a.3")
    scene.ask("a.2")
    assert len(Hash.compared) == compared
    scene.ask("a.1")
    scene.run()
    assert len(Hash.compared) > compared


# With fingerprints.


@pytest.fixture
def fingerprinted(scene: Scene) -> dict[str, TokenHash]:
    """Principals a and b with hashes as `multitower keys new` makes them. The secret of each is its name."""
    known = {name: hash_secret(name) for name in ("a", "b")}
    scene.verifier.set_principals({name: principal(name, (hashed,)) for name, hashed in known.items()})
    return known


def wrong_secrets(hashed: TokenHash, fits: bool) -> Iterator[str]:
    """Secrets that are wrong, and whose fingerprint is right or wrong."""
    return (secret for number in itertools.count() if hashed.may_match(secret := f"wrong{number}") is fits)


@pytest.mark.parametrize(
    ("name", "failure"), [("a", WRONG), ("nobody", Refusal(Failure.UNKNOWN_PRINCIPAL))], ids=["known", "unknown"]
)
def test_a_wrong_token_is_refused_at_sight(
    scene: Scene, fingerprinted: dict[str, TokenHash], name: str, failure: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "dummy_hash", lambda like: replace(like, fingerprint=b"no"))
    scene.verifier.set_principals({"a": principal("a", (fingerprinted["a"],))})
    secrets = wrong_secrets(fingerprinted["a"], False)
    for _ in range(tokens.WRONG_OF_SOURCE):
        token = f"{name}.{next(secrets)}"
        for _ in range(2):  # the same one does not count again
            scene.ask(token)
            assert scene.pop() == [(token, failure)]
    scene.ask(token := f"{name}.{next(secrets)}")
    assert scene.pop() == [(token, Refusal(Failure.TOO_MANY, retry_after_s=2.0, of_source=True))]
    scene.ask(token, "10.0.0.2:1")  # another source
    assert scene.pop() == [(token, failure)]
    assert not scene.jobs.most


def test_a_right_token_is_compared_however_many_wrong_ones_its_source_has_sent(
    scene: Scene, fingerprinted: dict[str, TokenHash]
) -> None:
    for secret in itertools.islice(wrong_secrets(fingerprinted["a"], False), 10 * tokens.MAX_WAITING):
        scene.ask(f"a.{secret}")
    assert not scene.jobs.most
    scene.pop()
    scene.ask("b.b")
    assert len(scene.jobs.waiting) == 1
    scene.jobs.finish()
    assert scene.pop() == [("b.b", "b")]


def test_who_has_found_out_a_fingerprint_is_limited_as_without(
    scene: Scene, fingerprinted: dict[str, TokenHash], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TokenHash, "may_match", lambda _, secret: secret.startswith("found"))
    monkeypatch.setattr(tokens, "_compare", lambda *_: None)
    for number in range(tokens.WRONG_OF_SOURCE):
        scene.ask(f"a.found{number}")
        scene.run()
    assert {outcome for _, outcome in scene.pop()} == {WRONG}
    scene.ask("a.found")
    assert scene.pop() == [("a.found", Refusal(Failure.TOO_MANY, retry_after_s=2.0, of_source=True))]


def test_what_fits_for_a_name_that_no_principal_has_tells_nothing_about_other_names(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[str] = []
    monkeypatch.setattr(tokens, "dummy_hash", bearer_tokens.dummy_hash)
    monkeypatch.setattr(bearer_tokens, "_FINGERPRINT_BYTES", 1)  # so that one that fits is soon found
    monkeypatch.setattr(tokens, "_compare", lambda secret, *_: compared.append(secret))
    scene.verifier.set_principals({"a": principal("a", (hash_secret("a"),))})
    for number in range(10_000):
        scene.ask(f"nobody.guess{number}")
        scene.run()
        if compared:
            break
    found = compared.pop()
    for number in range(100):
        scene.ask(f"nobody{number}.{found}", f"10.0.1.{number}:1")
        scene.run()
    assert len(compared) < 10


def test_fingerprints_are_not_looked_at_while_one_is_missing(scene: Scene, fingerprinted: dict[str, TokenHash]) -> None:
    known = fingerprinted | {"old": cheap("old")}
    scene.verifier.set_principals({name: principal(name, (hashed,)) for name, hashed in known.items()})
    scene.ask(f"a.{next(wrong_secrets(known['a'], False))}")
    assert len(scene.jobs.waiting) == 1
    scene.run()
    assert [outcome for _, outcome in scene.pop()] == [WRONG]


def test_real_hashes_in_a_real_thread() -> None:
    token, hashed = new_token("a")
    hashed = replace(hashed, fingerprint=None)
    answers: list[Principal | Refusal] = []
    with contextlib.closing(BackgroundJobs()) as jobs:
        verifier = TokenVerifier(jobs, lambda: 0.0)
        verifier.set_principals({"a": principal("a", (hashed,))})
        for asked in (token, token + "A", f"nobody.{token}"):
            verifier.verify(asked, "127.0.0.1:9", answers.append)
        assert answers == []
        while len(answers) < 3:
            assert select.select([jobs.descriptor], [], [], SOON_S)[0], "no outcome in time"
            jobs.run_callbacks()
    assert answers == [principal("a", (hashed,)), WRONG, Refusal(Failure.UNKNOWN_PRINCIPAL)]


@pytest.mark.parametrize(
    ("address", "source"),
    [
        ("10.1.2.3:4567", "10.1.2.3"),
        ("[2001:db8::1:2]:80", "2001:db8::/64"),
        ("[2001:db8:0:0:ffff::2]:81", "2001:db8::/64"),
        ("[::ffff:10.1.2.3]:80", "10.1.2.3"),
        ("[fe80::1%eth0]:80", "fe80::/64"),
        ("unix", "unix"),
        ("", ""),
        ("x" * 1000, "x" * 64),
    ],
)
def test_what_counts_as_one_source(address: str, source: str) -> None:
    assert source_of(address) == source
