"""Bearer tokens: a hash reads back as written, matches its own secret only, and is refused where it is weak."""

from __future__ import annotations

from dataclasses import replace

import pytest

from multitower.bearer_tokens import MAX_TOKEN, TokenHash, TokenHashError, dummy_hash, new_token, split_token

SALT, DIGEST = "c2FsdHNhbHRzYWx0", "ZGlnZXN0ZGlnZXN0ZGlnZXN0ZGlnZXN0"


def test_a_hash_matches_the_secret_of_its_own_token_only() -> None:
    token, hashed = new_token("checkout-service")
    name, secret = split_token(token) or ("", "")
    assert name == "checkout-service"
    assert len(secret) == 43
    read = TokenHash.parse(str(hashed))
    assert read == hashed
    assert read.matches(secret)
    assert not read.matches(secret[:-1] + ("A" if secret[-1] != "A" else "B"))
    assert secret not in str(hashed)


def test_a_fingerprint_tells_nearly_every_wrong_secret_apart() -> None:
    token, hashed = new_token("a")
    _, secret = split_token(token) or ("", "")
    assert hashed.fingerprint is not None
    assert f",f={hashed.fingerprint.hex()}$" in str(hashed)
    for each in (hashed, TokenHash.parse(str(hashed))):
        assert each.may_match(secret)
        assert sum(each.may_match(f"{secret}{number}") for number in range(1000)) < 10
    without = replace(hashed, fingerprint=None)
    assert TokenHash.parse(str(without)) == without
    assert without.matches(secret)
    assert without.may_match("anything")


def test_a_dummy_is_looked_at_as_what_it_is_like() -> None:
    _, hashed = new_token("a")
    for like in (None, hashed):
        assert sum(dummy_hash(like).may_match(str(number)) for number in range(1000)) < 10
    assert dummy_hash(replace(hashed, fingerprint=None)).may_match("anything")


def test_equal_tokens_have_different_salts_and_no_token_matches_the_dummy() -> None:
    (one, first), (other, second) = new_token("a"), new_token("a")
    assert one != other
    assert first.salt != second.salt
    dummy = dummy_hash()
    assert (dummy.cost_log2, dummy.blocks, dummy.passes) == (first.cost_log2, first.blocks, first.passes)
    assert not dummy.matches(one)


def test_a_known_answer_of_scrypt() -> None:
    # RFC 7914, section 12: the test vector with N=1024, r=8, p=16.
    digest = bytes.fromhex(
        "fdbabe1c9d3472007856e7190d01e9fe7c6ad7cbc8237830e77376634b373162"
        "2eaf30d92e22a3886ff109279d9830dac727afb94a83ee6d8360cbdfa2cc0640"
    )
    assert TokenHash(10, 8, 16, b"NaCl", digest).matches("password")


def test_the_base64_of_a_hash_may_be_padded() -> None:
    plain = TokenHash.parse(f"$scrypt$ln=14,r=8,p=1$c2FsdHNhbHRzYQ${DIGEST}")
    assert TokenHash.parse(f"$scrypt$ln=14,r=8,p=1$c2FsdHNhbHRzYQ==${DIGEST}") == plain


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "must look like"),
        ("hunter2", "must look like"),
        ("$argon2id$v=19$m=65536,t=3,p=4$c2FsdA$aGFzaA", "must look like"),
        (f"$scrypt$ln=14,r=8,p=1${SALT}${DIGEST}\n", "must look like"),
        (f"$scrypt$ln=14,r=8,p=1,f=9c3${SALT}${DIGEST}", "must look like"),
        (f"$scrypt$ln=14,r=8,p=1,f=${SALT}${DIGEST}", "must look like"),
        (f"$scrypt$ln=9,r=8,p=1${SALT}${DIGEST}", "too weak"),
        (f"$scrypt$ln=14,r=0,p=1${SALT}${DIGEST}", "too weak"),
        (f"$scrypt$ln=14,r=8,p=0${SALT}${DIGEST}", "too weak"),
        (f"$scrypt$ln=14,r=8,p=1$c2FsdA${DIGEST}", "too weak"),
        (f"$scrypt$ln=14,r=8,p=1${SALT}$aGFzaA", "too weak"),
        (f"$scrypt$ln=99,r=8,p=1${SALT}${DIGEST}", "too much memory"),
        (f"$scrypt$ln=17,r=8,p=1${SALT}${DIGEST}", "too much memory"),
        (f"$scrypt$ln=14,r=8,p=99${SALT}${DIGEST}", "too much memory or time"),
        (f"$scrypt$ln=14,r=8,p=1$c2Fsd${DIGEST}", "must be base64"),
    ],
)
def test_what_is_no_hash_or_a_bad_one_is_refused_without_being_repeated(text: str, why: str) -> None:
    with pytest.raises(TokenHashError, match=why) as refused:
        TokenHash.parse(text)
    if text:
        assert text not in str(refused.value)


@pytest.mark.parametrize(
    "token",
    ["", ".", "name", "name.", ".secret", "na me.secret", "näme.secret", "n" * 65 + ".secret", "n." + "s" * MAX_TOKEN],
)
def test_what_is_no_token(token: str) -> None:
    assert split_token(token) is None


def test_a_secret_may_have_any_characters() -> None:
    assert split_token("n.a.b") == ("n", "a.b")
    assert not dummy_hash().matches("half a surrogate pair: \ud800")
