#!/usr/bin/env bash
# tools/venv.sh EXTRA: make .venv in the repository root, or bring it up to date, with this package and one of its extras.
# Prints nothing on success. Installs again only when pyproject.toml has changed since this extra was installed.
set -euo pipefail

if [[ $# -ne 1 ]]; then
    echo "usage: tools/venv.sh EXTRA" >&2
    exit 2
fi
extra=$1
cd "$(dirname "${BASH_SOURCE[0]}")/.."

find_python() {
    local name
    for name in python3 python python3.14 python3.13 python3.12 python3.11; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            echo "$name"
            return
        fi
    done
    echo "error: no Python 3.11 or newer on the PATH; install one" >&2
    return 1
}

if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    python=$(find_python)
    "$python" -m venv --clear .venv
fi

stamp=.venv/installed-$extra
wanted=$(.venv/bin/python -c 'import hashlib, pathlib; print(hashlib.sha256(pathlib.Path("pyproject.toml").read_bytes()).hexdigest())')
if [[ ! -f $stamp || $(<"$stamp") != "$wanted" ]]; then
    rm -f "$stamp"
    .venv/bin/python -m pip install -qq --disable-pip-version-check --no-input --editable ".[$extra]"
    echo "$wanted" >"$stamp"
fi
