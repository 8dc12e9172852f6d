"""`multitower keys`: files that only their owner may read, and a file of principals that keeps its comments."""

from __future__ import annotations

import fcntl
import os
import shlex
import stat
import subprocess
import sys
import termios
from contextlib import closing
from pathlib import Path

import pytest
import zmq.auth
from click.testing import CliRunner, Result
from pty_terminal import PtyTerminal
from ruamel.yaml import YAML

from multitower.bearer_tokens import TokenHash, split_token
from multitower.cli.commands import multitower
from multitower.cli.keys import _ROLES
from multitower.curve_keys import new_pair, read_secret_file
from multitower.supervisor.config.principals import Role

PUBLIC = new_pair().public


def run(*words: str | Path, given: str | None = None) -> Result:
    """Runs `multitower keys`, with `given` as its input."""
    return CliRunner().invoke(multitower, ["keys", *map(str, words)], input=given)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def read(path: Path) -> list[dict[str, object]]:
    entries: list[dict[str, object]] = YAML(typ="safe", pure=True).load(path.read_text())["principals"]
    return entries


@pytest.fixture(autouse=True)
def _open_umask() -> object:
    """The modes must not depend on it."""
    before = os.umask(0)
    yield
    os.umask(before)


# keys new


def test_a_new_pair_is_written_for_its_owner_only(tmp_path: Path) -> None:
    result = run("new", "ana", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    secret, public = tmp_path / "ana.key_secret", tmp_path / "ana.key"
    assert (mode_of(secret), mode_of(public)) == (0o600, 0o644)
    pair = read_secret_file(secret)
    assert zmq.auth.load_certificate(public) == (pair.public.encode(), None)
    assert YAML(typ="safe", pure=True).load(result.stdout) == [
        {"name": "ana", "public_key": pair.public, "roles": ["infer"]}
    ]
    assert pair.secret not in result.output


def test_a_secret_file_is_never_open_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[int] = []
    real = os.open

    def watched(path: Path, flags: int, mode: int = 0o777, **options: int) -> int:
        if str(path).startswith(str(tmp_path)):
            modes.append(mode)
        return real(path, flags, mode, **options)

    monkeypatch.setattr(os, "open", watched)
    for extra in ((), ("--force",)):
        assert run("new", "ana", "--out", tmp_path, *extra).exit_code == 0
    assert len(modes) == 4
    assert set(modes) == {0o600}


def test_nothing_is_replaced_without_force(tmp_path: Path) -> None:
    run("new", "ana", "--out", tmp_path)
    before = (tmp_path / "ana.key_secret").read_text()
    result = run("new", "ana", "--out", tmp_path)
    assert result.exit_code == 1
    assert "exists already" in result.stderr
    assert (tmp_path / "ana.key_secret").read_text() == before
    assert run("new", "ana", "--out", tmp_path, "--force").exit_code == 0
    assert (tmp_path / "ana.key_secret").read_text() != before
    assert mode_of(tmp_path / "ana.key_secret") == 0o600


def test_a_link_in_place_of_the_secret_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "ana.key_secret").symlink_to(tmp_path / "elsewhere")
    assert run("new", "ana", "--out", tmp_path).exit_code == 1
    assert not (tmp_path / "elsewhere").exists()
    assert not (tmp_path / "ana.key").exists()


@pytest.mark.parametrize("kind", [(), ("--token",)])
def test_a_folder_that_does_not_exist_is_made_for_its_owner_only(tmp_path: Path, kind: tuple[str, ...]) -> None:
    folder = tmp_path / "new" / "folder"
    assert run("new", "ana", "--out", folder, *kind).exit_code == 0
    assert mode_of(folder) == 0o700
    assert any(folder.iterdir())
    tmp_path.chmod(0o755)
    assert run("new", "ana", "--out", tmp_path, *kind).exit_code == 0
    assert mode_of(tmp_path) == 0o755, "a folder that exists stays as it is"


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = run("new", "ana", "--out", tmp_path / "file" / "folder")
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"multitower: cannot make the folder {tmp_path}/file/folder: ")


@pytest.mark.parametrize("kind", [(), ("--token", "--out", "."), ("--token",)])
def test_the_command_that_adds_a_new_key_or_token_works_in_a_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    printed = run("new", "ana", *kind).stderr
    (command,) = [line for line in printed.splitlines() if line.startswith("multitower keys add")]
    # As a shell expands it: a hash has dollar signs.
    words = subprocess.run(
        ["sh", "-c", f"printf '%s\\n' {command}"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert run(*words[2:]).exit_code == 0, words
    (entry,) = read(tmp_path / "FILE")
    assert (entry["name"], entry["roles"]) == ("ana", ["infer"])
    assert ("token_hash" if kind else "public_key") in entry


def test_a_name_that_no_principal_may_have_gets_no_key(tmp_path: Path) -> None:
    result = run("new", "gateway", "--out", tmp_path)
    assert result.exit_code == 1
    assert "gateway is reserved" in result.stderr
    assert list(tmp_path.iterdir()) == []
    assert run("new", "gateway", "--server", "--out", tmp_path).exit_code == 0, "a daemon's key has no such limits"


def test_the_keys_of_a_daemon_come_with_its_configuration(tmp_path: Path) -> None:
    result = run("new", "--server", "gpus", "--out", tmp_path)
    pair = read_secret_file(tmp_path / "gpus.key_secret")
    configuration = YAML(typ="safe", pure=True).load(result.stdout)
    assert configuration == {
        "security": {
            "curve": {"secret_key": str(tmp_path / "gpus.key_secret")},
            "principals": str(tmp_path / "principals.yaml"),
        }
    }
    assert pair.public in result.stdout


def test_a_token_is_printed_once_with_the_entry_on_stderr(tmp_path: Path) -> None:
    result = run("new", "ana", "--token")
    (token,) = result.stdout.splitlines()
    name, secret = split_token(token) or ("", "")
    assert name == "ana"
    entry = result.stderr[result.stderr.index("- name") :]
    (written,) = YAML(typ="safe", pure=True).load(entry)
    assert TokenHash.parse(written["token_hash"]).matches(secret)
    assert list(tmp_path.iterdir()) == []


def test_a_token_is_written_for_its_owner_only(tmp_path: Path) -> None:
    result = run("new", "ana", "--token", "--out", tmp_path)
    path = tmp_path / "ana.token"
    assert mode_of(path) == 0o600
    _, secret = split_token(path.read_text().strip()) or ("", "")
    (written,) = YAML(typ="safe", pure=True).load(result.stdout)
    assert TokenHash.parse(written["token_hash"]).matches(secret)
    assert secret not in result.output


@pytest.mark.parametrize("name", ["", "a b", "../up", "a" * 65, "é"])
def test_what_is_no_name_is_refused(name: str, tmp_path: Path) -> None:
    assert run("new", name, "--out", tmp_path).exit_code == 2
    assert list(tmp_path.iterdir()) == []


# keys show


def test_the_public_key_of_either_half_is_shown(tmp_path: Path) -> None:
    run("new", "ana", "--out", tmp_path)
    pair = read_secret_file(tmp_path / "ana.key_secret")
    for name in ("ana.key", "ana.key_secret"):
        result = run("show", tmp_path / name)
        assert (result.exit_code, result.stdout) == (0, f"{pair.public}\n")
    (tmp_path / "other").write_text("nothing")
    assert run("show", tmp_path / "other").exit_code == 1


# keys hash


def test_the_hash_of_a_token_is_printed_and_the_token_is_not(tmp_path: Path) -> None:
    run("new", "ana", "--token", "--out", tmp_path)
    token = (tmp_path / "ana.token").read_text()
    result = run("hash", given=token)
    assert result.exit_code == 0, result.output
    _, secret = split_token(token.strip()) or ("", "")
    assert TokenHash.parse(result.stdout.strip()).matches(secret)
    assert secret not in result.output
    # The command that is printed adds it.
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("multitower keys add")]
    path = tmp_path / "principals.yaml"
    done = run(*shlex.split(line.replace("FILE", str(path)))[2:])
    assert done.exit_code == 0, done.output
    assert read(path) == [{"name": "ana", "token_hash": result.stdout.strip(), "roles": ["infer"]}]


def test_on_a_terminal_a_token_is_asked_for_and_not_shown() -> None:
    with closing(PtyTerminal(160)) as terminal:
        command = [sys.executable, "-m", "multitower", "keys", "hash"]
        # getpass reads the controlling terminal of the process, whatever its stdin is.
        with subprocess.Popen(
            command,
            stdin=terminal.theirs,
            stdout=terminal.theirs,
            stderr=terminal.theirs,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        ) as process:
            terminal.wait_for("token:")
            terminal.press(f"ana.{'s' * 43}\n")
            terminal.wait_for(lambda lines: any(line.startswith("$scrypt$") for line in lines))
            assert process.wait(60) == 0
    assert "sss" not in terminal.text


@pytest.mark.parametrize(
    ("token", "cause"),
    [
        ("", "a token is NAME.SECRET"),
        ("hunter2", "a token is NAME.SECRET"),
        (f"a b.{'s' * 43}", "a token is NAME.SECRET"),
        (f"ana.{'s' * 300}", "a token is NAME.SECRET"),
        (f"ana.{'s' * 42}", "has 42 characters, and so could be guessed"),
    ],
    ids=range(5),
)
def test_what_is_no_token_has_no_hash_and_is_not_repeated(token: str, cause: str) -> None:
    result = run("hash", given=f"{token}\n")
    assert (result.exit_code, result.stdout) == (1, "")
    assert cause in result.stderr
    assert "hunter2" not in result.output
    assert "sss" not in result.output


def test_a_token_is_no_argument() -> None:
    assert run("hash", f"ana.{'s' * 43}").exit_code == 2


# keys add


def test_the_roles_are_those_of_the_daemon() -> None:
    assert list(_ROLES) == list(Role)


FILE = f"""\
# The principals of this cluster.
principals:
  # The shop.
  - name: checkout-service   # asks most
    public_key: "{new_pair().public}"
    roles: [infer]
    models: ['digits', "resnet-*"]

  - name: ana
    token_hash: "$scrypt$ln=14,r=8,p=1$c2FsdHNhbHRzYWx0$ZGlnZXN0ZGlnZXN0ZGlnZXN0"
    roles:
      - observe
      - operate
# The end.
"""


def test_an_entry_is_added_and_every_other_line_stays(tmp_path: Path) -> None:
    path = tmp_path / "principals.yaml"
    path.write_text(FILE)
    path.chmod(0o640)
    result = run(
        *("add", "batch", "--principals", path, "--public-key", PUBLIC, "--role", "infer", "--role", "observe"),
        *("--model", "resnet-*", "--max-outstanding", "64", "--rate", "100"),
    )
    assert result.exit_code == 0, result.output
    assert read(path)[2] == {
        "name": "batch",
        "public_key": PUBLIC,
        "roles": ["infer", "observe"],
        "models": ["resnet-*"],
        "max_outstanding": 64,
        "rate": 100,
    }
    lines = path.read_text().splitlines()
    assert [line for line in FILE.splitlines() if line not in lines] == []
    assert mode_of(path) == 0o640


def test_a_principal_of_a_certificate_needs_neither_key_nor_hash(tmp_path: Path) -> None:
    path = tmp_path / "principals.yaml"
    assert run("add", "ana", "--principals", path, "--certificate", "--role", "infer").exit_code == 0
    assert read(path) == [{"name": "ana", "roles": ["infer"]}]


def test_the_file_is_made_readable_for_the_daemons_user_if_there_is_none(tmp_path: Path) -> None:
    run("new", "ana", "--out", tmp_path)
    path = tmp_path / "principals.yaml"
    result = run("add", "ana", "--principals", path, "--public-key", tmp_path / "ana.key", "--role", "operate")
    assert result.exit_code == 0, result.output
    public = read_secret_file(tmp_path / "ana.key_secret").public
    assert read(path) == [{"name": "ana", "public_key": public, "roles": ["operate"]}]
    assert mode_of(path) == 0o644
    assert path.read_text().startswith("# Who may do what.")
    assert "- name: ana" in path.read_text()


def test_a_second_key_is_added_beside_the_first_and_a_third_too(tmp_path: Path) -> None:
    path = tmp_path / "principals.yaml"
    path.write_text(FILE)
    first = read(path)[0]["public_key"]
    others = [new_pair().public, new_pair().public]
    for other in others:
        result = run("add", "checkout-service", "--principals", path, "--public-key", other, "--rotate")
        assert result.exit_code == 0, result.output
    assert read(path)[0] == {**read(path)[0], "public_key": [first, *others]}
    assert read(path)[1]["name"] == "ana"
    assert "# asks most" in path.read_text()


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        (["ana", "--public-key", PUBLIC, "--role", "infer"], "has a principal ana; --rotate"),
        (["new", "--public-key", "nonsense", "--role", "infer"], "cannot read the key nonsense"),
        (["new", "--token-hash", "hunter2", "--role", "infer"], "in single quotes: the shell replaces $"),
        (["new", "--public-key", PUBLIC, "--rotate"], "has no principal new"),
        (["new", "--public-key", FILE.split('"')[1], "--role", "infer"], "this public key already"),
        # What the daemon's own reader refuses.
        (["gateway", "--public-key", PUBLIC, "--role", "infer"], "nothing was changed: "),
        (["new", "--public-key", PUBLIC, "--role", "infer", "--model", "a b"], "neither a model's name nor a pattern"),
        (["new", "--public-key", PUBLIC, "--role", "infer", "--rate", "1e9"], "nothing was changed: "),
    ],
    ids=range(8),  # the keys differ from process to process
)
def test_a_refused_entry_changes_nothing(words: list[str], cause: str, tmp_path: Path) -> None:
    path = tmp_path / "principals.yaml"
    path.write_text(FILE)
    result = run("add", *words, "--principals", path)
    assert result.exit_code == 1
    assert cause in result.stderr
    assert "hunter2" not in result.stderr
    assert path.read_text() == FILE
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "words",
    [
        ["ana", "--role", "infer"],
        ["ana", "--public-key", PUBLIC],
        ["ana", "--public-key", PUBLIC, "--role", "admin"],
        ["ana", "--public-key", PUBLIC, "--role", "infer", "--rotate"],
        ["ana", "--certificate", "--rotate"],
    ],
    ids=range(5),
)
def test_options_that_do_not_suffice_or_go_together_are_refused(words: list[str], tmp_path: Path) -> None:
    path = tmp_path / "principals.yaml"
    assert run("add", *words, "--principals", path).exit_code == 2
    assert not path.exists()


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("principals: {", ":1:14: this is not YAML"),
        ("models: []\n", "is no file of principals"),
        ("- a\n", "its entries belong below a line `principals:`"),
    ],
)
def test_what_is_no_file_of_principals_stays_as_it_is(text: str, cause: str, tmp_path: Path) -> None:
    path = tmp_path / "principals.yaml"
    path.write_text(text)
    result = run("add", "ana", "--principals", path, "--public-key", PUBLIC, "--role", "infer")
    assert result.exit_code == 1
    assert cause in result.stderr
    assert path.read_text() == text
