"""Verifies bearer tokens.

A hash that is hard to guess from takes tens of milliseconds to compare, so it is compared in a thread, one token at a
time, and only once for each token: what was verified, and what was refused, is remembered by a keyed digest of the
token, never by the token. A name that no principal has costs as much time as one that a principal has.

A client that sends wrong tokens must not keep others out, nor use up the processor:

- Tokens that have been verified are answered at once, whatever else happens.
- Nearly all wrong tokens are recognized at once, by the fingerprints of the hashes. Each source (an IPv4 address, or a
  network of IPv6) is told of a limited number of them that they are wrong; for further ones it is only told to wait.
  All other tokens are compared. So wrong tokens that come through a proxy do not delay the valid ones of its other
  clients.
- If any hash has no fingerprint, no fingerprint is used: otherwise the time of an answer would show which names exist.
  Then, and for wrong tokens with the right fingerprint, each source may send a limited number of wrong tokens in a
  time. Its further unknown tokens are refused unexamined, until the time has passed.
- Sources take turns, and each has only a few tokens waiting.
- While many wrong tokens arrive in total, the next one is examined a little later.
"""

from __future__ import annotations

import functools
import hashlib
import ipaddress
import secrets
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Final, TypeVar

from multitower.bearer_tokens import TokenHash, dummy_hash, split_token

from ..config.principals import Principal
from ..loop.background import BackgroundJobs
from .authentication_failures import Failure
from .principal_limits import TokenBucket

MAX_WAITING: Final = 128
"""Tokens that wait to be verified at most."""

MAX_WAITING_OF_SOURCE: Final = 8
"""Those of one source."""

MAX_ASKING: Final = 64
"""Askers that wait for the same token."""

WRONG_OF_SOURCE: Final = 10
WRONG_OF_SOURCE_PER_S: Final = 0.5
"""How many wrong tokens of one source are compared, and of how many others it is told that they are wrong: this many at
once after a pause, and then this many a second. The two numbers are counted separately."""

WRONG_AT_ONCE: Final = 32
WRONG_PER_S: Final = 8.0
"""The same of all sources together. Beyond that, tokens wait."""

MAX_SOURCES: Final = 4096
MAX_REFUSED: Final = 4096
MAX_VERIFIED: Final = 4096
"""Sources and tokens that are remembered."""

FULL_RETRY_S: Final = 1.0
"""When a client may try again for whose token there was no room."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a token was not accepted.

    Attributes:
        failure: for the operator; a client learns only that it was refused.
        principal: the name of the principal whose token it seemed to be; None if there is none.
        retry_after_s: when it may be sent again, if it was not examined; None if it is wrong.
        of_source: whether it was not examined because of wrong ones of its own source.
    """

    failure: Failure
    principal: str | None = None
    retry_after_s: float | None = None
    of_source: bool = False


class _Check:
    """A token that waits to be verified, or is being verified."""

    __slots__ = ("asking", "digest", "generation", "name", "secret", "source")

    def __init__(self, digest: bytes, name: str, secret: str, source: str) -> None:
        self.digest = digest
        self.name = name
        self.secret = secret
        self.source = source
        self.asking: list[Callable[[Principal | Refusal], None]] = []
        self.generation = -1


class TokenVerifier:
    """Verifies tokens. For the loop's thread.

    Args:
        background: runs what compares hashes.
        clock: returns monotonic seconds.

    Attributes:
        due: when `tick` must be called at the latest, in monotonic seconds.
    """

    def __init__(self, background: BackgroundJobs, clock: Callable[[], float]) -> None:
        self.due = inf
        self._background = background
        self._clock = clock
        self._principals: Mapping[str, Principal] = {}
        self._generation = 0
        self._fingerprinted = True
        self._dummies: Sequence[TokenHash] = (dummy_hash(),)
        self._key = secrets.token_bytes(32)
        self._verified: OrderedDict[bytes, tuple[str, TokenHash]] = OrderedDict()
        self._refused: OrderedDict[bytes, Refusal] = OrderedDict()
        self._sources: OrderedDict[str, TokenBucket] = OrderedDict()  # of those that were compared
        self._guessing: OrderedDict[str, TokenBucket] = OrderedDict()  # of the others
        self._total = TokenBucket(WRONG_PER_S, WRONG_AT_ONCE, clock())
        self._waiting: OrderedDict[str, deque[_Check]] = OrderedDict()  # by source, whose turn it is next first
        self._checks: dict[bytes, _Check] = {}  # by digest: those that wait, and the one that is being verified
        self._running = False

    def set_principals(self, principals: Mapping[str, Principal]) -> None:
        """Sets whose tokens are accepted.

        Args:
            principals: all of them, by name.
        """
        self._principals = principals
        self._generation += 1
        self._refused.clear()
        self._fingerprinted = all(
            hashed.fingerprint is not None for principal in principals.values() for hashed in principal.token_hashes
        )
        # Each comparison takes as long as that of the principal with the most hashes.
        hashes = max((principal.token_hashes for principal in principals.values()), key=len, default=())
        self._dummies = [dummy_hash(like) for like in hashes] or (dummy_hash(),)

    def verify(self, token: str, source: str, done: Callable[[Principal | Refusal], None]) -> None:
        """Verifies a token.

        Args:
            token: as the client sent it.
            source: the address of the client, with its port.
            done: called once, now or later, with the principal, or with why the token was refused.
        """
        digest = self.digest(token)
        principal = self._find_verified(digest)
        if principal is not None:
            done(principal)
            return
        refusal = self._refused.get(digest)
        if refusal is not None:
            done(refusal)
            return
        split = split_token(token)
        if split is None:
            done(Refusal(Failure.MALFORMED_TOKEN))
            return
        check = _Check(digest, *split, source_of(source))
        if self._is_wrong_at_sight(check):
            done(self._refuse_at_sight(check))
        else:
            self._add(check, done)

    def digest(self, token: str) -> bytes:
        """Returns what stands for a token in memory: a digest that says nothing outside this process."""
        return hashlib.blake2b(token.encode("utf-8", "surrogatepass"), key=self._key, digest_size=32).digest()

    def _find_verified(self, digest: bytes) -> Principal | None:
        """The principal whose token was verified earlier, if that token is still its."""
        found = self._verified.get(digest)
        if found is None:
            return None
        name, hashed = found
        principal = self._principals.get(name)
        if principal is not None and hashed in principal.token_hashes:
            self._verified.move_to_end(digest)
            return principal
        del self._verified[digest]
        if principal is None or not principal.token_hashes:
            # A client whose principal was removed is told so at once, without a comparison.
            self._refuse(digest, Refusal(Failure.UNKNOWN_PRINCIPAL))
        return None

    def _is_wrong_at_sight(self, check: _Check) -> bool:
        """Whether fingerprints show that a token is wrong. If no principal has the name, that of a dummy may fit."""
        if not self._fingerprinted:
            return False
        hashes = self._hashes_of(check.name)
        fits = sum(hashed.may_match(check.secret) for hashed in hashes)  # looks at all of them, in any case
        # The name is included. Otherwise a secret that fits for one name that no principal has would fit for all such
        # names. That would show which names exist, and each of them would cost a comparison.
        token = f"{check.name}.{check.secret}"
        return fits + sum(dummy.may_match(token) for dummy in self._dummies[len(hashes) :]) == 0

    def _refuse_at_sight(self, check: _Check) -> Refusal:
        now = self._clock()
        wait_s = _bucket_of(self._guessing, check.source, now).take(now)
        if wait_s:
            return Refusal(Failure.TOO_MANY, retry_after_s=wait_s, of_source=True)
        return self._refuse_wrong(check)

    def _hashes_of(self, name: str) -> Sequence[TokenHash]:
        principal = self._principals.get(name)
        return principal.token_hashes if principal is not None else ()

    def _add(self, check: _Check, done: Callable[[Principal | Refusal], None]) -> None:
        """Adds a check to those that wait, or joins the one of the same token."""
        same = self._checks.get(check.digest)
        if same is not None:
            if len(same.asking) >= MAX_ASKING:
                done(Refusal(Failure.TOO_MANY, retry_after_s=FULL_RETRY_S))
            else:
                same.asking.append(done)
            return
        now = self._clock()
        wait_s = self._wait_of_source(check.source, now)
        if wait_s:
            done(Refusal(Failure.TOO_MANY, retry_after_s=wait_s, of_source=True))
            return
        if not self._has_room(check.source):
            done(Refusal(Failure.TOO_MANY, retry_after_s=FULL_RETRY_S))
            return
        check.asking.append(done)
        self._checks[check.digest] = check
        self._waiting.setdefault(check.source, deque()).append(check)
        self.tick(now)

    def _wait_of_source(self, source: str, now: float) -> float:
        """The seconds until a source may send another unknown token; 0 if it may now."""
        bucket = self._sources.get(source)
        return bucket.wait_s(now) if bucket is not None else 0.0

    def _has_room(self, source: str) -> bool:
        """Whether a check of a source may wait; another source that has more of them waiting gives way."""
        own = len(self._waiting.get(source, ()))
        if own >= MAX_WAITING_OF_SOURCE:
            return False
        if sum(map(len, self._waiting.values())) < MAX_WAITING:
            return True
        most = max(self._waiting, key=lambda each: len(self._waiting[each]))
        if len(self._waiting[most]) <= own + 1:
            return False
        dropped = self._waiting[most].pop()
        self._answer(dropped, Refusal(Failure.TOO_MANY, retry_after_s=FULL_RETRY_S))
        return True

    def tick(self, now: float) -> None:
        """Begins to verify the next token, if one waits and it is time to.

        Args:
            now: monotonic seconds.
        """
        self.due = inf
        if self._running or not self._waiting:
            return
        wait_s = self._total.wait_s(now)
        if wait_s:
            self.due = now + wait_s
            return
        source, checks = next(iter(self._waiting.items()))
        check = checks.popleft()
        if checks:
            self._waiting.move_to_end(source)
        else:
            del self._waiting[source]
        hashes = tuple(self._hashes_of(check.name))
        check.generation = self._generation
        self._running = True
        job = functools.partial(_compare, check.secret, hashes, tuple(self._dummies))
        self._background.run(job, functools.partial(self._on_compared, check))

    def _on_compared(self, check: _Check, outcome: TokenHash | Exception | None) -> None:
        self._running = False
        now = self._clock()
        try:
            self._settle(check, outcome, now)
        finally:
            self.tick(now)

    def _settle(self, check: _Check, outcome: TokenHash | Exception | None, now: float) -> None:
        if isinstance(outcome, Exception):  # no thread could be started, or no memory was left
            self._answer(check, Refusal(Failure.TOO_MANY, retry_after_s=FULL_RETRY_S))
            return
        principal = self._principals.get(check.name)
        if outcome is not None and principal is not None and outcome in principal.token_hashes:
            _put(self._verified, check.digest, (check.name, outcome), MAX_VERIFIED)
            self._answer(check, principal)
        elif check.generation != self._generation:
            self._waiting.setdefault(check.source, deque()).appendleft(check)  # its principal may have been added
        else:
            self._total.take(now)
            _bucket_of(self._sources, check.source, now).take(now)
            self._answer(check, self._refuse_wrong(check))

    def _refuse_wrong(self, check: _Check) -> Refusal:
        """Remembers that a token is wrong, and returns what it is answered with."""
        known = bool(self._hashes_of(check.name))
        failure = Failure.WRONG_TOKEN if known else Failure.UNKNOWN_PRINCIPAL
        refusal = Refusal(failure, check.name if check.name in self._principals else None)
        self._refuse(check.digest, refusal)
        return refusal

    def _refuse(self, digest: bytes, refusal: Refusal) -> None:
        _put(self._refused, digest, refusal, MAX_REFUSED)

    def _answer(self, check: _Check, outcome: Principal | Refusal) -> None:
        del self._checks[check.digest]
        for done in check.asking:
            done(outcome)


def _compare(secret: str, hashes: Sequence[TokenHash], dummies: Sequence[TokenHash]) -> TokenHash | None:
    """Returns the hash that a secret matches; None for none. In a thread.

    Without a match it makes as many comparisons as there are dummies, or hashes.
    """
    for hashed in hashes:
        if hashed.matches(secret):
            return hashed
    for dummy in dummies[len(hashes) :]:
        dummy.matches(secret)
    return None


def source_of(address: str) -> str:
    """Returns what wrong tokens are counted by: an IPv4 address, or a network of IPv6, since one host has a whole one.

    Args:
        address: of a client, `IP:PORT` or `[IP]:PORT`; anything else counts as it is.
    """
    host = address.rpartition(":")[0].strip("[]") or address
    try:
        found = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return address[:64]
    mapped = found.ipv4_mapped if found.version == 6 else None
    if found.version == 6 and mapped is None:
        return str(ipaddress.ip_network((found, 64), strict=False))
    return str(mapped or found)


def _bucket_of(sources: OrderedDict[str, TokenBucket], source: str, now: float) -> TokenBucket:
    """What a source may still send wrong; the one that has sent none for longest is forgotten."""
    bucket = sources.get(source) or TokenBucket(WRONG_OF_SOURCE_PER_S, WRONG_OF_SOURCE, now)
    _put(sources, source, bucket, MAX_SOURCES)
    return bucket


K = TypeVar("K")
V = TypeVar("V")


def _put(known: OrderedDict[K, V], key: K, value: V, limit: int) -> None:
    """Adds an entry as the newest; the oldest one goes if there are too many then."""
    known[key] = value
    known.move_to_end(key)
    if len(known) > limit:
        known.popitem(last=False)
