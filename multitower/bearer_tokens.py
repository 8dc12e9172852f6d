"""Bearer tokens of clients of the gateway, and the hashes of them that a file of principals holds.

A token is `NAME.SECRET`. The name chooses the principal whose hashes are compared, so checking a token costs one hash
however many principals there are. The secret has 256 random bits. A hash is written in the form that password files
use: `$scrypt$ln=14,r=8,p=1,f=9c3e$SALT$HASH`. `ln` is the binary logarithm of scrypt's cost; SALT and HASH are in
base64, and padding may be left out.

`f` is a fingerprint of the secret: the first 16 bits of the SHA-256 of salt and secret. Nearly all wrong
secrets are refused by it at once, so that a client that sends many of them does not keep others waiting. The other bits
are as hard to guess as without it. It may be left out.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass, replace
from typing import Final

NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
"""The name of a principal."""

MAX_TOKEN: Final = 256
"""Characters that a token may have; a longer one is refused without being looked at."""

_SECRET_BYTES: Final = 32
_SECRET_CHARACTERS: Final = 43
"""Of 32 bytes in base64, without padding."""

_SALT_BYTES: Final = 16
_HASH_BYTES: Final = 32
_FINGERPRINT_BYTES: Final = 2
_COST_LOG2: Final = 14
_BLOCKS: Final = 8

_FORM: Final = re.compile(
    r"\$scrypt\$ln=([0-9]{1,2}),r=([0-9]{1,2}),p=([0-9]{1,2})(?:,f=([0-9a-f]{4}))?"
    r"\$([A-Za-z0-9+/]{1,88}={0,2})\$([A-Za-z0-9+/]{1,88}={0,2})",
    re.ASCII,
)
_LEAST_COST_LOG2: Final = 10
_MAX_MEMORY: Final = 64 << 20
"""Bytes of memory that one hash may take."""

_MAX_WORK: Final = 1 << 20
"""Cost times blocks times passes of one hash at most: about a third of a second."""


class TokenHashError(ValueError):
    """What should be the hash of a token is none; the message says why, and does not repeat it."""


@dataclass(frozen=True, slots=True)
class TokenHash:
    """The hash of a token's secret.

    Attributes:
        cost_log2: the binary logarithm of scrypt's cost N.
        blocks: scrypt's block size r.
        passes: scrypt's parallelisation p.
        salt: random bytes.
        digest: the hash.
        fingerprint: of the secret; None where it is not known.
    """

    cost_log2: int
    blocks: int
    passes: int
    salt: bytes
    digest: bytes
    fingerprint: bytes | None = None

    @classmethod
    def parse(cls, text: str) -> TokenHash:
        """Reads a hash as a file of principals has it.

        Raises:
            TokenHashError: it is malformed, too weak, or would take too much memory or time to compare.
        """
        found = _FORM.fullmatch(text)
        if found is None:
            raise TokenHashError(
                "must look like $scrypt$ln=14,r=8,p=1,f=9c3e$SALT$HASH, as `multitower keys new --token` prints it"
            )
        cost_log2, blocks, passes = (int(number) for number in found.groups()[:3])
        fingerprint = bytes.fromhex(found[4]) if found[4] is not None else None
        salt, digest = (_from_base64(part) for part in found.groups()[4:])
        if cost_log2 < _LEAST_COST_LOG2 or not blocks or not passes:
            raise TokenHashError(f"is too weak: ln must be at least {_LEAST_COST_LOG2}, r and p at least 1")
        # First: two to the power of a large ln would be a large number.
        work = (blocks * passes) << min(cost_log2, 32)
        if (128 * blocks) << min(cost_log2, 32) > _MAX_MEMORY or work > _MAX_WORK:
            raise TokenHashError("would take too much memory or time to compare: ln=14,r=8,p=1 is enough")
        if len(salt) < 8 or len(digest) < 16:
            raise TokenHashError("is too weak: SALT must have at least 8 bytes, HASH at least 16")
        return cls(cost_log2, blocks, passes, salt, digest, fingerprint)

    def __str__(self) -> str:
        parameters = f"ln={self.cost_log2},r={self.blocks},p={self.passes}"
        if self.fingerprint is not None:
            parameters += f",f={self.fingerprint.hex()}"
        return f"$scrypt${parameters}${_to_base64(self.salt)}${_to_base64(self.digest)}"

    def may_match(self, secret: str) -> bool:
        """Whether this may be the hash of a secret, by its fingerprint. It takes microseconds."""
        return self.fingerprint is None or hmac.compare_digest(_fingerprint(self.salt, secret), self.fingerprint)

    def matches(self, secret: str) -> bool:
        """Whether this is the hash of a secret. It takes tens of milliseconds, and the same time in either case."""
        return hmac.compare_digest(self._hash(secret), self.digest)

    def _hash(self, secret: str) -> bytes:
        return hashlib.scrypt(
            _encoded(secret),
            salt=self.salt,
            n=1 << self.cost_log2,
            r=self.blocks,
            p=self.passes,
            maxmem=_MAX_MEMORY + (1 << 20),  # OpenSSL counts a little more than the blocks
            dklen=len(self.digest),
        )


def new_token(name: str) -> tuple[str, TokenHash]:
    """Makes a token for a principal.

    Args:
        name: of the principal; see `NAME`.

    Returns:
        The token, which only its owner may know, and its hash for the file of principals.
    """
    secret = secrets.token_urlsafe(_SECRET_BYTES)
    return f"{name}.{secret}", hash_secret(secret)


def hash_secret(secret: str) -> TokenHash:
    """Returns a hash of a secret, with a new salt."""
    salt = secrets.token_bytes(_SALT_BYTES)
    unhashed = TokenHash(_COST_LOG2, _BLOCKS, 1, salt, bytes(_HASH_BYTES), _fingerprint(salt, secret))
    return replace(unhashed, digest=unhashed._hash(secret))


def hash_token(token: str) -> tuple[str, TokenHash]:
    """Returns the name in a token, and a hash of its secret.

    Raises:
        ValueError: it is no token, or its secret is so short that somebody could guess it.
    """
    parts = split_token(token)
    if parts is None:
        raise ValueError(
            f"a token is NAME.SECRET, of at most {MAX_TOKEN} characters; `multitower keys new NAME --token` makes one"
        )
    name, secret = parts
    if len(secret) < _SECRET_CHARACTERS:
        raise ValueError(
            f"the secret of this token has {len(secret)} characters, and so could be guessed: it needs at least "
            f"{_SECRET_CHARACTERS} random ones; `multitower keys new {name} --token` makes such a token"
        )
    return name, hash_secret(secret)


def dummy_hash(like: TokenHash | None = None) -> TokenHash:
    """Returns a hash that nothing matches.

    Args:
        like: the one that it takes as long to compare as; one that `new_token` makes if None.
    """
    salt, digest, fingerprint = map(secrets.token_bytes, (_SALT_BYTES, _HASH_BYTES, _FINGERPRINT_BYTES))
    if like is None:
        return TokenHash(_COST_LOG2, _BLOCKS, 1, salt, digest, fingerprint)
    return replace(like, salt=salt, digest=digest, fingerprint=fingerprint if like.fingerprint is not None else None)


def split_token(token: str) -> tuple[str, str] | None:
    """Returns the name and the secret of a token; None for what is no token."""
    if len(token) > MAX_TOKEN:
        return None
    name, dot, secret = token.partition(".")
    return (name, secret) if dot and secret and NAME.fullmatch(name) else None


def _encoded(secret: str) -> bytes:
    return secret.encode("utf-8", "surrogatepass")


def _fingerprint(salt: bytes, secret: str) -> bytes:
    return hashlib.sha256(salt + _encoded(secret)).digest()[:_FINGERPRINT_BYTES]


def _to_base64(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii").rstrip("=")


def _from_base64(text: str) -> bytes:
    try:
        text = text.rstrip("=")
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except binascii.Error:
        raise TokenHashError("SALT and HASH must be base64") from None
