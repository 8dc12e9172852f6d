"""`multitower keys`: makes keys and tokens of clients and daemons, shows keys, and adds principals to a file."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from multitower.bearer_tokens import NAME

_ROLES: Final = ("infer", "observe", "operate")


def _check_name(context: click.Context, parameter: click.Parameter, value: str) -> str:
    if not NAME.fullmatch(value):
        raise click.BadParameter("a name has 1 to 64 letters, digits, '_' and '-'", context, parameter)
    return value


@click.group(short_help="Make, show and admit the keys and tokens of clients and daemons.")
def keys() -> None:
    """Make, show and admit the keys and tokens of clients and daemons.

    A client over tcp has a pair of CURVE keys, a client over HTTP or gRPC a bearer token. The daemon's file of
    principals has the public key, or the hash of the token, and what its owner may do.

    \b
      multitower keys new server --server --out /etc/multitower
      multitower keys new checkout-service
      multitower keys add checkout-service --principals principals.yaml --public-key checkout-service.key --role infer
    """  # noqa: D301 - the escape keeps click from folding these lines


@keys.command()
@click.argument("name", callback=_check_name)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Write the files there; it is made if it does not exist.  [default: the current folder; a token is printed]",
)
@click.option("--server", is_flag=True, help="The keys are a daemon's.")
@click.option("--token", is_flag=True, help="Make a bearer token instead, for HTTP and gRPC.")
@click.option("--force", is_flag=True, help="Replace files that exist.")
def new(name: str, out: Path | None, server: bool, token: bool, force: bool) -> None:
    """Make a pair of CURVE keys, or a token, for NAME.

    Writes NAME.key_secret, which only its owner may read, and NAME.key, which is public; with --token and --out
    NAME.token. Prints what belongs into the file of principals. A token without --out is printed once, and stored
    nowhere.
    """
    if server and token:
        raise click.UsageError("a daemon has keys, not a token: --server and --token exclude each other")
    if not server:
        _run(_refuse_reserved, name)
    if token:
        _run(_new_token, name, out, force=force)
    else:
        _run(_new_pair, name, out or Path(), server=server, force=force)


def _refuse_reserved(name: str) -> None:
    from multitower.supervisor.config.principals import RESERVED

    if name in RESERVED:
        raise ValueError(f"{name} is reserved: no principal may have this name")


def _new_pair(name: str, folder: Path, *, server: bool, force: bool) -> None:
    from multitower.tools.keys.key_files import write_pair
    from multitower.tools.keys.principals_file import Entry, snippet

    written = write_pair(name, folder, replace=force)
    click.echo(f"secret key: {written.secret_file} (mode 0600: it admits everybody who has it)", err=True)
    click.echo(f"public key: {written.public_file}", err=True)
    if server:
        click.echo("the daemon's configuration, and below it what clients get as server_key:", err=True)
        principals = written.secret_file.absolute().with_name("principals.yaml")
        click.echo(f"security:\n  curve:\n    secret_key: {written.secret_file.absolute()}")
        click.echo(f"  principals: {principals}  # `multitower keys add` makes it")
        click.echo(f"# {written.public}")
    else:
        click.echo(_to_add(name, f"--public-key '{written.public}'"), err=True)
        click.echo("which adds this entry:", err=True)
        click.echo(snippet(Entry(name, ["infer"], public_key=written.public)), nl=False)


def _to_add(name: str, credential: str) -> str:
    """What to do with a new key or hash: a whole command, which a shell takes as it is."""
    command = f"multitower keys add {name} --principals FILE --role infer {credential}"
    return f"the operator of the daemon adds it to the file of principals with:\n{command}"


def _new_token(name: str, folder: Path | None, *, force: bool) -> None:
    from multitower.bearer_tokens import new_token
    from multitower.tools.keys.key_files import write_token
    from multitower.tools.keys.principals_file import Entry, snippet

    token, hashed = new_token(name)
    if folder is not None:
        click.echo(f"token: {write_token(name, folder, token, replace=force)} (mode 0600)", err=True)
    else:
        click.echo("the token, which is shown only now; clients send it as Authorization: Bearer TOKEN", err=True)
        click.echo(token)
    click.echo(_to_add(name, f"--token-hash '{hashed}'"), err=True)
    click.echo("which adds this entry:", err=True)
    click.echo(snippet(Entry(name, ["infer"], token_hash=str(hashed))), nl=False, err=folder is None)


@keys.command()
@click.argument("file", type=click.Path(path_type=Path))
def show(file: Path) -> None:
    """Print the public key in FILE, which is either half of a pair.

    Of a daemon it is what clients get as server_key; of a client it belongs into the daemon's file of principals.
    """
    _run(_show, file)


def _show(file: Path) -> None:
    from multitower.curve_keys import read_public_file

    click.echo(read_public_file(file))


@keys.command(name="hash")
def hash_command() -> None:
    """Print the hash of a token that is read from stdin, for the file of principals.

    A token is no argument, since every user of the machine can see the arguments of a command. On a terminal you are
    asked for it, and it is not shown.

    \b
      multitower keys hash < ana.token
    """  # noqa: D301 - the escape keeps click from folding these lines
    _run(_hash)


def _hash() -> None:
    from multitower.bearer_tokens import MAX_TOKEN, hash_token

    if sys.stdin.isatty():
        token = click.prompt("token", hide_input=True, err=True)
    else:
        token = sys.stdin.read(MAX_TOKEN + 2).strip()
    name, hashed = hash_token(token)
    click.echo(_to_add(name, f"--token-hash '{hashed}'"), err=True)
    click.echo("where the entry exists, --rotate in place of --role adds it to what it has. The hash:", err=True)
    click.echo(hashed)


@keys.command()
@click.argument("name", callback=_check_name)
@click.option(
    "--principals",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    metavar="FILE",
    help="The daemon's file of principals. It is made if it does not exist.",
)
@click.option("--role", "roles", type=click.Choice(_ROLES), multiple=True, help="What it may do. Repeatable.")
@click.option("--public-key", metavar="KEY", help="Its public key, or the file of it.")
@click.option(
    "--token-hash",
    metavar="HASH",
    help="The hash of its token, from `keys new --token` or `keys hash`. In single quotes: the shell replaces $.",
)
@click.option(
    "--certificate",
    is_flag=True,
    help="It has no key or token: it uses client certificates whose CN is NAME (gateway.tls.client_ca).",
)
@click.option(
    "--model", "models", multiple=True, metavar="NAME", help="A model that it may use, or a pattern.  [default: all]"
)
@click.option("--max-outstanding", type=click.IntRange(1), metavar="N", help="The most requests at a time.")
@click.option("--rate", type=click.FloatRange(0, min_open=True), metavar="R", help="The most requests per second.")
@click.option("--rotate", is_flag=True, help="NAME is there: add the key or hash to those that it has.")
def add(name: str, principals: Path, **given: Any) -> None:
    """Add NAME to a daemon's file of principals.

    The file is replaced as a whole, and keeps its comments. `multitower reload` makes the daemon read it.

    \b
      multitower keys add ana --principals principals.yaml --public-key ana.key --role infer --model 'resnet-*'
    """  # noqa: D301 - the escape keeps click from folding these lines
    if given["public_key"] is None and given["token_hash"] is None:
        if given["rotate"]:
            raise click.UsageError("--rotate needs --public-key, --token-hash, or both")
        if not given["certificate"]:
            raise click.UsageError("pass --public-key, --token-hash, or both; or --certificate")
    if given["rotate"] and (given["roles"] or given["models"] or given["max_outstanding"] or given["rate"]):
        raise click.UsageError("--rotate adds a key or a hash; edit the file to change the rest")
    if not given["rotate"] and not given["roles"]:
        raise click.UsageError("pass --role for what NAME may do: infer, observe or operate; repeat it for several")
    _run(_add, name, principals, given)


def _add(name: str, path: Path, given: dict[str, Any]) -> None:
    from multitower.bearer_tokens import TokenHash
    from multitower.curve_keys import exists, is_key, read_public_file
    from multitower.tools.keys.principals_file import Entry, add_entry, rotate_entry

    public_key: str | None = given["public_key"]
    if public_key is not None and (exists(public_key) or not is_key(public_key)):
        public_key = read_public_file(public_key)
    if given["token_hash"] is not None:
        _check_hash(TokenHash.parse, given["token_hash"])
    rate: float | None = given["rate"]
    entry = Entry(
        name,
        given["roles"],
        public_key=public_key,
        token_hash=given["token_hash"],
        models=given["models"],
        max_outstanding=given["max_outstanding"],
        rate=int(rate) if rate is not None and rate.is_integer() else rate,
    )
    (rotate_entry if given["rotate"] else add_entry)(path, entry)
    click.echo(f"{path}: {name} has a further key" if given["rotate"] else f"{path}: {name} is added", err=True)
    click.echo("`multitower reload` makes a running daemon read it", err=True)


def _check_hash(parse: Callable[[str], object], text: str) -> None:
    try:
        parse(text)
    except ValueError as error:
        if text.startswith("$scrypt$"):
            raise
        raise ValueError(f"{error} (put the hash in single quotes: the shell replaces $)") from None


def _run(action: Any, *arguments: Any, **options: Any) -> None:
    """Runs an action; an error that is the user's becomes one line on stderr."""
    from multitower.cli.connection import error_line
    from multitower.tools.errors import ToolError

    try:
        action(*arguments, **options)
    except (ToolError, ValueError) as error:  # ValueError: of a key or a hash
        click.echo(error_line(error), err=True)
        sys.exit(1)
