"""CURVE keys: their form, and files of them, which are refused where others may use a secret one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import zmq
import zmq.auth

from multitower import curve_keys
from multitower.curve_keys import KeyProblemError, read_public_file, read_secret_file

PAIR = curve_keys.new_pair()


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def test_a_key_is_forty_characters_of_z85() -> None:
    assert curve_keys.is_key(PAIR.public)
    assert curve_keys.is_key(PAIR.secret)
    assert not curve_keys.is_key(PAIR.public[:-1])
    assert not curve_keys.is_key(PAIR.public[:-1] + "~")
    assert not curve_keys.is_key("#" * 40)  # each group is over 2**32
    assert not curve_keys.is_key("é" * 40)


def test_a_pair_of_libzmq_reads_as_it_does_for_libzmq(tmp_path: Path) -> None:
    zmq.auth.create_certificates(tmp_path, "theirs")
    secret = tmp_path / "theirs.key_secret"
    secret.chmod(0o600)
    public_key, secret_key = zmq.auth.load_certificate(secret)
    pair = read_secret_file(secret)
    assert (pair.public.encode(), pair.secret.encode()) == (public_key, secret_key)
    assert read_public_file(tmp_path / "theirs.key") == pair.public
    ours = write(tmp_path / "ours.key_secret", curve_keys.certificate(PAIR.public, PAIR.secret))
    assert zmq.auth.load_certificate(ours) == (PAIR.public.encode(), PAIR.secret.encode())
    assert read_secret_file(ours) == PAIR
    assert read_public_file(ours) == PAIR.public


def test_a_file_may_hold_a_key_alone(tmp_path: Path) -> None:
    assert read_secret_file(write(tmp_path / "secret", f"{PAIR.secret}\n")) == PAIR
    assert read_public_file(write(tmp_path / "public", PAIR.public)) == PAIR.public


def test_the_secret_key_is_in_no_representation() -> None:
    assert PAIR.secret not in repr(PAIR)
    assert PAIR.secret not in str(PAIR)


@pytest.mark.parametrize("mode", [0o604, 0o606, 0o640, 0o660, 0o777])
def test_a_secret_key_that_others_may_use_is_refused(mode: int, tmp_path: Path) -> None:
    path = write(tmp_path / "k.key_secret", curve_keys.certificate(PAIR.public, PAIR.secret), mode)
    with pytest.raises(KeyProblemError, match="chmod 600") as error:
        read_secret_file(path)
    assert PAIR.secret not in str(error.value)


@pytest.mark.parametrize("read", [read_secret_file, read_public_file])
def test_a_key_in_place_of_its_file_is_not_repeated(
    read: Callable[[str], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KeyProblemError, match="it may be a key itself") as raised:
        read(PAIR.secret)
    assert PAIR.secret not in str(raised.value)


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file to another user")
def test_a_group_may_read_a_secret_key_of_another_user_but_not_write_it(tmp_path: Path) -> None:
    path = write(tmp_path / "k.key_secret", PAIR.secret, 0o440)
    os.chown(path, 65534, 65534)
    assert read_secret_file(path) == PAIR
    path.chmod(0o460)
    with pytest.raises(KeyProblemError, match="others may use"):
        read_secret_file(path)


def test_a_public_key_in_place_of_the_secret_one_is_told_apart_before_its_mode(tmp_path: Path) -> None:
    path = write(tmp_path / "k.key", curve_keys.certificate(PAIR.public), 0o644)
    with pytest.raises(KeyProblemError, match="is a public key; the secret one is in"):
        read_secret_file(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no secret key"),
        (curve_keys.certificate(PAIR.public), "is a public key; the secret one is in the file NAME.key_secret"),
        (curve_keys.certificate(PAIR.public, PAIR.secret[:-1]), "holds no secret key"),
        (curve_keys.certificate(curve_keys.new_pair().public, PAIR.secret), "are no pair"),
        ("x" * 100_000, "too large"),
    ],
    ids=range(5),  # the keys differ from process to process
)
def test_what_is_no_secret_key_is_refused_without_being_repeated(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(KeyProblemError, match=words) as error:
        read_secret_file(write(tmp_path / "k", text))
    assert PAIR.secret[:-1] not in str(error.value)


def test_a_missing_file_a_folder_and_a_pipe_are_refused_at_once(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path, words in (
        (tmp_path / "none", "No such file"),
        (tmp_path, "not a regular file|directory"),
        (pipe, "not a"),
    ):
        with pytest.raises(KeyProblemError, match=words):
            read_secret_file(path)


def test_a_public_key_is_not_read_from_a_file_without_one(tmp_path: Path) -> None:
    text = f'curve\n    secret-key = "{PAIR.secret}"\n'
    with pytest.raises(KeyProblemError, match="holds no public key"):
        read_public_file(write(tmp_path / "k", text))
