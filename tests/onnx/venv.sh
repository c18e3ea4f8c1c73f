#!/usr/bin/env bash
# Installs onnx and ONNX Runtime into a virtual environment under target/, unless it is there, and prints its path.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
venv=${CARGO_TARGET_DIR:-$here/../../target}/onnx
if ! cmp -s "$here/requirements.txt" "$venv/installed"; then
    echo "installing onnx and ONNX Runtime into $venv" >&2
    rm -rf "$venv"
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check -r "$here/requirements.txt" >&2
    cp "$here/requirements.txt" "$venv/installed"
fi
realpath "$venv"
