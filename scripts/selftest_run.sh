#!/bin/sh
# Installs multitower from this folder alone, without a network, and runs `multitower selftest` with the arguments.
#
#   PYTHON                 the Python to use (default: python@PYTHON_VERSION@, else python3)
#   VENV                   where to make the virtual environment (default: in a temporary folder, removed at the end)
#   MULTITOWER_COMPILE=0   install the wheel of plain Python, although there is a compiler
set -eu
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python@PYTHON_VERSION@}
command -v "$python" >/dev/null || python=python3
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
if [ "$version" != @PYTHON_VERSION@ ]; then
    echo "run.sh: this bundle is for Python @PYTHON_VERSION@, and $python is $version; set PYTHON" >&2
    exit 69
fi
work=$(mktemp -d)
child=
trap 'rm -rf "$work" || { sleep 1; rm -rf "$work"; }' EXIT
ended= # the exit code once a signal has arrived
end() {
    ended=$1
    [ -n "$child" ] || exit "$ended"
    kill "$child" 2>/dev/null || :
}
trap 'end 130' INT
trap 'end 143' TERM
trap 'end 129' HUP

# Runs a program that a signal to this shell ends too, and waits until it has ended. After a signal, the shell exits.
attend() {
    "$@" &
    child=$!
    code=0
    wait "$child" || code=$?
    while kill -0 "$child" 2>/dev/null; do # `wait` returns early after a signal
        code=0
        wait "$child" || code=$?
    done
    child=
    [ -z "$ended" ] || exit "$ended"
    return "$code"
}

install() {
    # Of a pip that is ended, nothing is left either.
    TMPDIR=$work attend "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-index \
        --find-links "$here/wheels" "$@"
}

venv=${VENV:-$work/venv}
if ! attend "$python" -m venv "$venv"; then
    echo "run.sh: no virtual environment could be made; install python@PYTHON_VERSION@-venv, or set PYTHON" >&2
    exit 69
fi
compiler=${CC:-cc}
if [ "${MULTITOWER_COMPILE:-}" != 0 ] && command -v "${compiler%% *}" >/dev/null &&
    "$venv/bin/python" -c 'import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")' 2>/dev/null; then
    echo "run.sh: compiling multitower; MULTITOWER_COMPILE=0 does without" >&2
    # If a module cannot be compiled after all, the source distribution is installed uncompiled.
    source=$(echo "$here"/wheels/multitower-*.tar.gz)
else
    source=$(echo "$here"/wheels/multitower-*.whl)
fi
# By its path: a package of that name in an index is not ours.
install "${source}[server]"
unset MULTITOWER_COMPILE
attend "$venv/bin/multitower" selftest "$@"
