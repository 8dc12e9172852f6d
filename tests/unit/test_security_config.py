"""The section `security`, `gateway.tls` and the file of principals: what is right, and what is refused where."""

from __future__ import annotations

import os
import shutil
import struct
import tempfile
from pathlib import Path

import pytest
from made_security import make_keys, make_security, write_certificate, write_principals, write_secret

from multitower.supervisor import parts
from multitower.supervisor.config.config import Config
from multitower.supervisor.config.loading import load
from multitower.supervisor.config.principals import Role, read_principals
from multitower.supervisor.config.secret_files import GuardedFileError, read_curve_keys
from multitower.supervisor.config.source import ConfigError
from multitower.supervisor.operations.reload import unchangeable_keys

SECURITY = "security: {curve: {secret_key: server.key_secret}, principals: principals.yaml}"
LIST = "security: {principals: principals.yaml}"
TLS = "tls: {certificate: certificate.pem, private_key: private_key.pem}"
MODEL = "models: [{name: digits, path: digits}]"
HASH = "$scrypt$ln=14,r=8,p=1$MDEyMzQ1Njc4OWFiY2RlZg==$41uBuEIHgVau41v1q9BTZzisnSi/olB0DbA83e36fiY="
KEY = "rs>4zL2+lwXtc=yKj$pFlMR9Q(FCNf^(152PAbTA"
OTHER_KEY = "42bAqDYrdCCp1dp9B0HyDF)#PzsqO>!^MB/4mb+="


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "saved_model.pb").touch()
    make_security(tmp_path, [{"name": "one", "roles": ["infer"]}])
    write_certificate(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(*lines: str) -> Config:
    Path("x.yaml").write_text("\n".join([MODEL, *lines]))
    return load("x.yaml", environment={})


def refused(*lines: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read(*lines)
    return str(caught.value)


def test_without_the_section_nothing_changes() -> None:
    config = read()
    assert (config.security, config.principals) == (None, None)


def test_the_section_names_keys_and_principals(folder: Path) -> None:
    config = read(SECURITY, "listen: ['tcp://0.0.0.0:5555', ipc://front.sock]")
    assert config.security is not None
    assert config.security.curve is not None
    assert config.security.curve.secret_key == folder / "server.key_secret"
    assert config.principals is not None
    assert config.principals.by_name["one"].roles == {Role.INFER}


def test_a_secret_key_in_place_of_its_file_is_not_repeated() -> None:
    secret = make_keys().secret
    message = refused(f"security: {{curve: {{secret_key: '{secret}'}}, principals: principals.yaml}}")
    assert "x.yaml:2:32: security.curve.secret_key: must be the path of a file" in message
    assert secret not in message


def test_a_daemon_that_runs_cannot_take_another_key_from_the_same_file(folder: Path) -> None:
    before = read(SECURITY)
    (folder / "server.key_secret").chmod(0o400)
    assert unchangeable_keys(before, read(SECURITY)) == []
    write_secret(folder / "server.key_secret", make_keys())
    (changed,) = unchangeable_keys(before, read(SECURITY))
    assert changed == f"security.curve ({folder}/server.key_secret holds another key now)"
    write_secret(folder / "other.key_secret", make_keys())
    assert unchangeable_keys(before, read(SECURITY.replace("server.", "other."))) == ["security.curve"]
    assert unchangeable_keys(before, read(LIST, "listen: ipc://front.sock")) == ["listen", "security.curve"]


def test_a_key_that_is_replaced_while_the_daemon_starts_ends_the_start(folder: Path) -> None:
    config = read(SECURITY)
    assert config.security is not None
    assert config.security.curve is not None
    keys = parts._read_curve_keys(config)
    assert keys is not None
    assert keys.public == config.security.curve.public_key
    (folder / "server.key_secret").unlink()
    write_secret(folder / "server.key_secret", make_keys())
    with pytest.raises(parts.StartError, match="got another key while the daemon started"):
        parts._read_curve_keys(config)


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ((LIST, "listen: tcp://127.0.0.1:5555"), "x.yaml:3:9: listen: tcp://127.0.0.1:5555 needs `security.curve`"),
        ((LIST, "insecure: true", "listen: ['tcp://0.0.0.0:1']"), "listen[0]: tcp://0.0.0.0:1 needs `security.curve`"),
        ((LIST,), "tcp://127.0.0.1:5555 needs `security.curve`"),
        (("security: {}",), "security: the key 'principals' is missing"),
        (("security: {principals: none.yaml}", "listen: ipc://a"), "none.yaml does not exist"),
        (("security: {principals: .}", "listen: ipc://a"), "x.yaml:2:24: security.principals: "),
        (("security: {curve: {}, principals: principals.yaml}",), "security.curve: the key 'secret_key' is missing"),
        (("security: {curve: {secret_key: 1}, principals: principals.yaml}",), "must be the path of a file, not 1"),
        (("listen: tcp://0.0.0.0:1",), "0.0.0.0 can be reached from other machines, without encryption"),
        (("listen: tcp://0.0.0.0:1",), "add security.curve, or set 'insecure: true'"),
        (("gateway: {http: '0.0.0.0:1'}",), "add security and gateway.tls, or set 'insecure: true'"),
        ((f"gateway: {{http: '0.0.0.0:1', {TLS}}}",), "without authorisation; use 127.0.0.1, add security, or"),
        ((SECURITY, "gateway: {http: '0.0.0.0:1'}"), "without encryption; use 127.0.0.1, add gateway.tls, or"),
        ((LIST, "listen: tcp://0.0.0.0:1"), "tcp://0.0.0.0:1 needs `security.curve`: without it no client could show"),
        ((SECURITY, "gateway: {http: '0.0.0.0:1'}"), "x.yaml:3:17: gateway.http: 0.0.0.0 can be reached"),
        (
            (SECURITY, "gateway: {http: '0.0.0.0:1', tls: {certificate: none, private_key: private_key.pem}}"),
            "none cannot",
        ),
        (
            (f"gateway: {{http: '127.0.0.1:1', {TLS.replace('private_key.pem', 'certificate.pem')}}}",),
            "certificate.pem",
        ),
    ],
)
def test_what_is_refused(lines: tuple[str, ...], problem: str) -> None:
    assert problem in refused(*lines)


def test_a_wrong_key_is_not_reported_as_a_missing_one() -> None:
    Path("server.key_secret").chmod(0o644)
    message = refused(SECURITY, "listen: tcp://0.0.0.0:5555", f"gateway: {{http: '0.0.0.0:1', {TLS}}}")
    assert "others may use" in message
    assert message.count("\n") == 0, message


@pytest.mark.parametrize(
    "lines",
    [
        (SECURITY, f"gateway: {{http: '0.0.0.0:1', {TLS}}}"),
        (SECURITY, "gateway: {http: '127.0.0.1:1'}"),
        (LIST, "listen: ipc://a", "gateway: {grpc: '127.0.0.1:1'}"),
        ("insecure: true", "gateway: {http: '0.0.0.0:1'}"),
        (SECURITY, "insecure: true", "gateway: {http: '0.0.0.0:1'}"),
        (f"gateway: {{http: '127.0.0.1:1', {TLS[:-1]}, client_ca: certificate.pem}}}}",),
    ],
)
def test_what_is_allowed(lines: tuple[str, ...]) -> None:
    read(*lines)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o666, 0o610, 0o601])
@pytest.mark.parametrize(("name", "lines"), [("server.key_secret", (SECURITY,)), ("private_key.pem", ())])
def test_a_secret_that_others_may_use_is_refused(name: str, lines: tuple[str, ...], mode: int) -> None:
    lines = lines or (f"gateway: {{http: '127.0.0.1:1', {TLS}}}",)
    read(*lines)
    Path(name).chmod(mode)
    assert f"(mode {mode:04o}): chmod 0600" in refused(*lines)


@pytest.mark.parametrize("mode", [0o664, 0o646])
def test_authorities_that_others_may_replace_are_refused(mode: int) -> None:
    shutil.copy("certificate.pem", "client_ca.pem")
    lines = f"gateway: {{http: '127.0.0.1:1', {TLS[:-1]}, client_ca: client_ca.pem}}}}"
    read(lines)
    Path("client_ca.pem").chmod(mode)
    assert f"others may write {Path.cwd()}/client_ca.pem (mode {mode:04o}): chmod 0644" in refused(lines)


USER, GROUP, MASK, OTHERS = 0x02, 0x08, 0x10, 0x20


def grant(path: str, *named: tuple[int, int, int], mask: int = 4, others: int = 0) -> None:
    """Gives a file a POSIX access control list, as setfacl does: its owner reads it, its group does not.

    Args:
        path: of the file.
        named: the other entries: a tag, permissions, and the number of a user or group.
        mask, others: permissions.
    """
    entries = [(0x01, 4, -1), *named, (0x04, 0, -1), (MASK, mask, -1), (OTHERS, others, -1)]
    packed = [struct.pack("<HHi", *entry) for entry in sorted(entries)]
    try:
        os.setxattr(path, "system.posix_acl_access", struct.pack("<I", 2) + b"".join(packed))
    except OSError as error:
        pytest.skip(f"no access control lists here: {error.strerror}")


ME, SOMEBODY = os.geteuid(), 4711


@pytest.mark.parametrize(("name", "lines"), [("server.key_secret", (SECURITY,)), ("private_key.pem", ())])
def test_a_secret_that_a_list_shows_to_its_user_alone_is_taken_as_systemd_gives_it(
    name: str, lines: tuple[str, ...]
) -> None:
    lines = lines or (f"gateway: {{http: '127.0.0.1:1', {TLS}}}",)
    grant(name, (USER, 4, ME))
    assert Path(name).stat().st_mode & 0o777 == 0o440, "the mode is that of a file which its group may read"
    read(*lines)


@pytest.mark.parametrize(
    ("named", "others"),
    [
        ([(USER, 4, ME), (USER, 4, SOMEBODY)], 0),
        ([(USER, 4, ME), (GROUP, 4, ME)], 0),
        ([(USER, 4, ME)], 4),
        ([(USER, 4, SOMEBODY)], 0),
    ],
)
def test_a_secret_that_a_list_shows_to_others_is_refused(named: list[tuple[int, int, int]], others: int) -> None:
    grant("server.key_secret", *named, others=others)
    assert f"others may use {Path.cwd()}/server.key_secret (mode 044{others})" in refused(SECURITY)


def test_what_the_mask_of_a_list_takes_away_does_not_count() -> None:
    grant("server.key_secret", (USER, 4, SOMEBODY), mask=0)
    read(SECURITY)


@pytest.mark.parametrize("entries", [[(0x01, 6, -1), (0x04, 4, -1), (OTHERS, 0, -1)], []], ids=["minimal", "empty"])
def test_a_list_without_a_mask_takes_nothing_from_the_mode(
    entries: list[tuple[int, int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Linux's own file systems keep no such list; one over the network or in a user's process may show it.
    value = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
    monkeypatch.setattr(os, "getxattr", lambda *_: value)
    Path("server.key_secret").chmod(0o640)
    assert f"others may use {Path.cwd()}/server.key_secret (mode 0640)" in refused(SECURITY)


def test_a_public_key_in_place_of_the_secret_one_is_told_apart_before_its_mode() -> None:
    Path("server.key_secret").write_text(f'public-key = "{KEY}"\n')
    Path("server.key_secret").chmod(0o644)
    assert "is a public key" in refused(SECURITY)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize(
    ("name", "mode", "words"),
    [
        ("server.key_secret", 0o600, "cannot be read by user nobody (it is root's, mode 0600): chown nobody "),
        ("principals.yaml", 0o600, "cannot be read by user nobody (it is root's, mode 0600): chmod 0644 "),
        ("principals.yaml", None, "by user nobody: Permission denied, for one of the folders above it"),
    ],
)
def test_a_file_that_only_root_can_read_says_how_to_let_the_daemons_user(
    name: str, mode: int | None, words: str
) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # pytest's own folders admit nobody
        path = Path(shutil.copy(name, folder))
        path.chmod(mode or 0o644)
        Path(folder).chmod(0o755 if mode is not None else 0o700)
        os.seteuid(65534)
        try:
            with pytest.raises(GuardedFileError) as error:
                read_curve_keys(path) if name == "server.key_secret" else read_principals(path)
        finally:
            os.seteuid(0)
        assert words in str(error.value)


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o664, 0o666])
def test_principals_that_others_may_write_are_refused(mode: int) -> None:
    Path("principals.yaml").chmod(mode)
    assert f"others may write {Path.cwd()}/principals.yaml (mode {mode:04o}): chmod" in refused(SECURITY)


@pytest.mark.parametrize("name", ["server.key_secret", "principals.yaml"])
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_file_of_another_user_is_refused(name: str) -> None:
    os.chown(name, 4711, 0)
    assert "belongs to user 4711; it must belong to user 0" in refused(SECURITY)


def test_a_file_that_is_no_regular_one_is_refused_at_once() -> None:
    Path("server.key_secret").unlink()
    os.mkfifo("server.key_secret", 0o600)
    assert "is not a regular file" in refused(SECURITY)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "`multitower keys new NAME --server --out FOLDER` makes one"),
        (" \n", "is empty"),
        (f'public-key = "{KEY}"', "is a public key; the secret one is in the file NAME.key_secret beside it"),
        ("secret", 'has no line secret-key = "…"'),
        ('secret-key = "short"', "no key of 40 characters"),
        (f'secret-key = "{"#" * 40}"', "no key of 40 characters"),
        (f'secret-key = "{"~" * 40}"', "no key of 40 characters"),
        (f'public-key = "{KEY}"\nsecret-key = "p7F(tREkdC>XLU*}})&Fq.[:]Se>ksg}}6WyaAO6k}}"', "are no pair"),
        ("x" * 70_000, "is over 64 KiB"),
        ("\xff", "is not UTF-8"),
    ],
)
def test_what_is_no_secret_key_is_refused(text: str, problem: str) -> None:
    Path("server.key_secret").write_bytes(text.encode("latin-1" if text == "\xff" else "utf-8"))
    message = refused(SECURITY)
    assert problem in message
    assert "p7F" not in message


def test_keys_are_read_and_the_secret_one_is_not_shown(tmp_path: Path) -> None:
    keys = make_keys()
    found = read_curve_keys(write_secret(tmp_path / "key", keys))
    assert (found.public, found.secret) == (keys.public, keys.secret)
    assert keys.secret not in repr(found)


# The file of principals.


def problems_of(text: str) -> list[str]:
    Path("p.yaml").write_text(text)
    Path("p.yaml").chmod(0o600)
    with pytest.raises(ConfigError) as caught:
        read_principals(Path("p.yaml"))
    return [str(problem).removeprefix("p.yaml:") for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ("{name: one}", "1:14: principals[0]: the key 'roles' is missing"),
        ("{roles: [infer]}", "1:14: principals[0]: the key 'name' is missing"),
        (
            "{name: one, roles: [admin]}",
            "1:34: principals[0].roles[0]: 'admin' is not a role; roles are infer, observe",
        ),
        ("{name: one, roles: []}", "roles: must not be empty"),
        ("{name: one, roles: infer}", "must be a list of roles"),
        ("{name: one, roles: [infer, infer]}", "lists a role twice"),
        ("{name: one, roles: [1]}", "1 is not a role"),
        ("{name: '', roles: [infer]}", "'' is not a name"),
        ("{name: 'local:0', roles: [infer]}", "'local:0' is not a name"),
        ("{name: gateway, roles: [infer]}", "gateway is reserved"),
        ("{name: anonymous, roles: [infer]}", "anonymous is reserved"),
        (f"{{name: {'x' * 65}, roles: [infer]}}", "is not a name"),
        ("{name: one, roles: [infer], public_key: short}", "a public key must have 40 characters, not 5"),
        ("{name: one, roles: [infer], public_key: []}", "public_key: must not be empty"),
        ("{name: one, roles: [infer], public_key: 7}", "must be a CURVE public key in Z85, in quotes, not 7"),
        (f"{{name: one, roles: [infer], public_key: '{'#' * 40}'}}", "a public key is not Z85"),
        (f"{{name: one, roles: [infer], public_key: {['k'] * 5}}}", "has 5 keys; at most 4 are allowed"),
        ("{name: one, roles: [infer], token_hash: secret}", "token_hash: must look like $scrypt$ln=14"),
        (f"{{name: one, roles: [infer], token_hash: '{HASH.replace('14', '9')}'}}", "ln must be at least 10"),
        (f"{{name: one, roles: [infer], token_hash: '{HASH.replace('14', '20')}'}}", "too much memory or time"),
        (f"{{name: one, roles: [infer], token_hash: '{HASH.replace('r=8', 'r=99')}'}}", "too much memory or time"),
        (f"{{name: one, roles: [infer], token_hash: '{HASH.replace('MDEyMzQ1Njc4OWFiY2RlZg==', 'MDE=')}'}}", "8 bytes"),
        ("{name: one, roles: [infer], models: []}", "models: must not be empty; leave the key out for all models"),
        ("{name: one, roles: [infer], models: ['a b']}", "'a b' is neither a model's name nor a pattern"),
        ("{name: one, roles: [infer], rate: 0}", "must be a number of requests per second, above 0"),
        ("{name: one, roles: [infer], rate: true}", "must be a number of requests per second"),
        ("{name: one, roles: [infer], rate: .inf}", "must be a number of requests per second"),
        ("{name: one, roles: [infer], max_outstanding: 0}", "max_outstanding: must be at least 1, not 0"),
        ("{name: one, roles: [infer], role: x}", "role: unknown key (did you mean 'roles'?)"),
        ("{name: one, roles: [infer], models: }", "models: has no value"),
        ("{name: one, roles: [infer]}, {name: one, roles: [infer]}", "1:50: principals[1].name: the name one is given"),
        (
            f"{{name: a, roles: [infer], public_key: '{KEY}'}}, {{name: b, roles: [infer], public_key: '{KEY}'}}",
            "principals[1].public_key: the public key is given twice",
        ),
        (f"{{name: a, roles: [infer], public_key: ['{KEY}', '{KEY}']}}", "the public key is given twice"),
    ],
)
def test_a_wrong_principal_is_refused_with_its_position(entry: str, problem: str) -> None:
    (found,) = problems_of(f"principals: [{entry}]")
    assert problem in found


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "must be a mapping with the key principals, a list"),
        ("[]", "the entries belong below a line `principals:`"),
        ("{}", "the key 'principals' is missing"),
        ("principals:", "1:1: principals: has no value; it must have a list of principals, or [] for none"),
        ("principals: 1", "1:13: principals: must be a list"),
        ("principals: [", "is not valid YAML"),
    ],
)
def test_what_is_no_file_of_principals_is_refused(text: str, problem: str) -> None:
    (found,) = problems_of(text)
    assert problem in found


def test_no_message_shows_what_may_be_a_secret() -> None:
    for key in ("token_hash", "public_key"):
        (found,) = problems_of(f"principals: [{{name: one, roles: [infer], {key}: one.c2VjcmV0}}]")
        assert "c2VjcmV0" not in found


def test_all_problems_are_reported_by_line_and_refuse_the_configuration() -> None:
    Path("principals.yaml").write_text("principals:\n- {name: a, roles: [x]}\n- {name: 1, roles: [infer]}\n")
    message = refused(SECURITY, "xyzzy: 1")
    assert [line.partition("/principals.yaml")[2][:4] for line in message.splitlines()[1:]] == [":2:2", ":3:1"]
    assert "xyzzy" in message


def test_nobody_is_a_list_too() -> None:
    assert read_principals(write_principals(Path("p.yaml"), [])).by_name == {}


def test_a_principal_has_all_that_the_file_says() -> None:
    entry = {
        "name": "one",
        "roles": ["infer", "operate"],
        "public_key": [KEY, OTHER_KEY],
        "token_hash": HASH,
        "models": "resnet-*",
        "max_outstanding": 3,
        "rate": 7,
    }
    principals = read_principals(write_principals(Path("p.yaml"), [entry, {"name": "two", "roles": ["observe"]}]))
    one = principals.by_name["one"]
    assert (one.roles, one.models) == ({Role.INFER, Role.OPERATE}, ("resnet-*",))
    assert (one.max_outstanding, one.rate) == (3, 7.0)
    assert principals.by_key == {KEY: one, OTHER_KEY: one}
    (token,) = one.token_hashes
    assert (token.cost_log2, token.blocks, token.passes) == (14, 8, 1)
    assert (token.salt, len(token.digest)) == (b"0123456789abcdef", 32)
    two = principals.by_name["two"]
    assert (two.models, two.public_keys, two.token_hashes, two.rate) == (None, (), (), None)
    assert principals == read_principals(Path("p.yaml"))


def test_an_unreadable_list_is_a_guarded_files_error() -> None:
    with pytest.raises(GuardedFileError, match="does not exist"):
        read_principals(Path("none.yaml"))
