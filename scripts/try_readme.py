"""Runs the commands of README.md to the letter in a Debian 12 as debootstrap makes it.

    sudo python scripts/try_readme.py FOLDER

FOLDER gets the system (4 GB in the end); one that is there already, as from an earlier run, is used again. The commands
run as an ordinary user with `sudo`, in a copy of this checkout. It needs root, debootstrap, a package index for pip and
a mirror for apt; both are configured in the new system as they are on this machine. Nothing outlives the program: it
runs in namespaces of its own.

What `apt-get` asks is answered with yes. Commands that README.md says run until Ctrl-C get one at the end of their
section, after the commands for another terminal and the Python program have run.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import new_debian
from new_debian import run

ROOT: Final = Path(__file__).parents[1]
SECTIONS: Final = ("Try it without a GPU", "Serve your own model", "Serve clients of TensorFlow Serving and Triton")
USER: Final = "somebody"
HOME: Final = f"/home/{USER}"
CHECKOUT: Final = f"{HOME}/multitower"
READY_S: Final = 300.0

NAMESPACES: Final = ("unshare", "--mount", "--pid", "--fork", "--kill-child")
INSIDE: Final = "--inside"
UNTIL_CTRL_C: Final = ("make serve", "multitower serve ", "multitower model-server ")


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that README.md tells the reader to do.

    Attributes:
        kind: `run` for a command, `write` for a file, `program` for a Python program.
        text: the command without its comment, or the content.
        name: the file's name; empty for a command.
    """

    kind: str
    text: str
    name: str = ""


def sections(readme: str) -> list[list[Step]]:
    """The steps of README.md, in its order, section by section."""
    texts = [readme.partition(f"\n## {title}\n")[2].partition("\n## ")[0] for title in SECTIONS]
    every: list[list[Step]] = []
    for section in texts:
        found: list[Step] = []
        for language, text in re.findall(r"^```(\w+)\n(.*?)^```", section, re.DOTALL | re.MULTILINE):
            if language == "sh":
                lines = (re.sub(r"\s+# .*", "", line).strip() for line in text.splitlines())
                found += [Step("run", line) for line in lines if line]
            elif language == "yaml":
                found.append(Step("write", text, text.partition("\n")[0].removeprefix("# ")))
            elif language == "python":
                found.append(Step("program", text, "program.py"))
        every.append(found)
    return every


def prepare(system: Path) -> None:
    """Makes the system, the user and the copy of the checkout; configures the network as on this machine."""
    new_debian.make(system, "sudo")
    (system / "etc/apt/apt.conf.d/90yes").write_text('APT::Get::Assume-Yes "true";\n')
    (system / "etc/sudoers.d/somebody").write_text(f"{USER} ALL=(ALL) NOPASSWD: ALL\n")
    run("mount", "-t", "proc", "proc", str(system / "proc"))
    run("mount", "--rbind", "/dev", str(system / "dev"))
    if not (system / HOME[1:]).exists():
        run("chroot", str(system), "useradd", "--create-home", "--shell", "/bin/bash", USER)
    run("chroot", str(system), "apt-get", "update", "-qq")
    shutil.rmtree(system / CHECKOUT[1:], ignore_errors=True)
    (system / CHECKOUT[1:]).mkdir()
    names = run("git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z").split("\0")
    for name in filter(None, names):
        source, target = ROOT / name, system / CHECKOUT[1:] / name
        if source.is_symlink() or source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)
    run("chroot", str(system), "chown", "-R", f"{USER}:", HOME)


class Terminal:
    """A shell of the user in the new system, in the checkout.

    Args:
        system: the folder of the system.

    Attributes:
        output: what the last command printed to standard output.
    """

    def __init__(self, system: Path) -> None:
        self.output = ""
        network = {name: value for name, value in os.environ.items() if new_debian.NETWORK_VARIABLES.fullmatch(name)}
        environment = {"HOME": HOME, "USER": USER, "LANG": "C.UTF-8", "PATH": "/usr/local/bin:/usr/bin:/bin", **network}
        self._shell = subprocess.Popen(
            [
                shutil.which("chroot") or "chroot",
                f"--userspec={USER}:{USER}",
                str(system),
                "/bin/bash",
                "--noprofile",
                "--norc",
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
        )
        # Job control: each command has a process group, which gets Ctrl-C, as at a terminal; the shell outlives it.
        self.run(f"set -m; trap : INT; cd {CHECKOUT}")

    def start(self, command: str) -> None:
        """Starts a command that runs until Ctrl-C."""
        print(f"$ {command}   (until Ctrl-C)", flush=True)
        self._write(command)

    def run(self, command: str) -> int:
        """Runs a command, and returns its exit code; shows what it prints."""
        print(f"$ {command}", flush=True)
        self._write(command)
        return self.wait()

    def wait(self) -> int:
        """Waits until the command has ended, and returns its exit code."""
        assert self._shell.stdout is not None
        self._write('echo "exit code: $?"')
        self.output = ""
        for line in self._shell.stdout:
            if found := re.search(r"(.*)exit code: (\d+)$", line):  # what `curl` prints ends without a line break
                self.output += found[1]
                print(found[1], end="\n" if found[1] else "", flush=True)
                return int(found[2])
            self.output += line
            print(line, end="", flush=True)
        raise RuntimeError("the shell has ended")

    def interrupt(self) -> int:
        """Sends Ctrl-C to the command that runs, and returns its exit code."""
        children = Path(f"/proc/{self._shell.pid}/task/{self._shell.pid}/children").read_text().split()
        for child in children:
            os.killpg(int(child), signal.SIGINT)
        return self.wait()

    def _write(self, line: str) -> None:
        assert self._shell.stdin is not None
        self._shell.stdin.write(line + "\n")
        self._shell.stdin.flush()


@contextlib.contextmanager
def serving(terminal: Terminal, other: Terminal, command: str) -> Iterator[None]:
    """Serves in one terminal, until the commands in the other one have run."""
    terminal.start(command)
    deadline = time.monotonic() + READY_S
    while other.run("multitower status") != 0:
        if time.monotonic() > deadline:
            raise RuntimeError(f"`{command}` did not serve within {READY_S:g} s")
        time.sleep(2)
    yield
    code = terminal.interrupt()
    if code not in (0, 130):
        raise RuntimeError(f"`{command}` ended with code {code} after Ctrl-C")


def follow(system: Path, first: Terminal, todo: Sequence[Step]) -> None:
    """Does the steps of a section one by one.

    Args:
        system: the folder of the system.
        first: the terminal in which the section begins, and in which daemons run.
        todo: the steps.

    Raises:
        RuntimeError: one failed.
    """
    terminal = first
    with contextlib.ExitStack() as stack:
        for step in todo:
            if step.kind == "write":
                (system / CHECKOUT[1:] / step.name).write_text(step.text)
            elif step.kind == "program":
                (system / CHECKOUT[1:] / step.name).write_text(step.text)
                succeed(terminal, f"python {step.name}")
            elif step.text.startswith(UNTIL_CTRL_C):
                terminal = Terminal(system)
                succeed(terminal, ". .venv/bin/activate")
                stack.enter_context(serving(first, terminal, step.text))
            else:
                succeed(terminal, step.text)


def succeed(terminal: Terminal, command: str) -> None:
    """Runs a command.

    Raises:
        RuntimeError: it failed, or the server answered with an error, which `curl` does not take for a failure.
    """
    code = terminal.run(command)
    if code:
        raise RuntimeError(f"`{command}` ended with code {code}")
    if command.startswith("curl ") and not re.search(r'"(predictions|model_version_status)"', terminal.output):
        raise RuntimeError(f"`{command}` was answered: {terminal.output}")


def main(arguments: Sequence[str]) -> None:
    """Runs the program again in namespaces of its own, and does the steps there."""
    if arguments[:1] != [INSIDE]:
        os.execvp(NAMESPACES[0], [*NAMESPACES, sys.executable, __file__, INSIDE, *arguments])
    system = Path(arguments[1]).resolve()
    run("mount", "--make-rprivate", "/")
    prepare(system)
    # The children of processes are listed by the namespace's own /proc.
    run("mount", "-t", "proc", "proc", "/proc")
    terminal = Terminal(system)
    for section in sections((ROOT / "README.md").read_text()):
        follow(system, terminal, section)
    print("every command of README.md worked")


if __name__ == "__main__":
    main(sys.argv[1:])
