#!/usr/bin/env bash
# Exports of scikit-learn, XGBoost and LightGBM, served by the worker beside ONNX Runtime: see exports.py.
# Needs the built worker ($WORKER, or target/release/forebay-worker) and Python 3.11+; everything else goes into a
# virtual environment under target/.
set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
here=$root/tests/onnx
target=${CARGO_TARGET_DIR:-$root/target}
venv=$target/exports
if ! cmp -s "$here/exports.txt" "$venv/installed"; then
    echo "installing exporters into $venv"
    rm -rf "$venv"
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check -r "$here/exports.txt"
    cp "$here/exports.txt" "$venv/installed"
fi
exec "$venv/bin/python" "$here/exports.py" --worker "${WORKER:-$target/release/forebay-worker}" "$@"
