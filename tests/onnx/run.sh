#!/usr/bin/env bash
# The engine beside others' word for what a graph computes: the node tests of the package onnx, values at
# the edges of single operators, operators of classical models, models that a worker serves alone, in batches and
# under many clients, with either of its engines, and random graphs beside ONNX Runtime. Needs the built example `cases` ($CASES, or target/debug/examples/cases), the worker
# ($WORKER, or target/debug/forebay-worker) and Python 3.11+; everything else goes into a virtual environment
# under target/.
#
#   tests/onnx/run.sh               node tests, values, served models, then random graphs for a minute
#   SECONDS_OF_GRAPHS=600 SEED=7 tests/onnx/run.sh
#                                   random graphs for as long as one likes, from a seed
#   UPDATE=1 tests/onnx/run.sh      takes what loads by now off the list of what does not
set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
here=$root/tests/onnx
target=${CARGO_TARGET_DIR:-$root/target}
export CASES=${CASES:-$target/debug/examples/cases}
worker=${WORKER:-$target/debug/forebay-worker}
if [[ ! -x $worker ]]; then
    echo "expected the worker, found nothing at $worker: run cargo build --workspace" >&2
    exit 2
fi
if [[ ! -x $CASES ]]; then
    echo "expected the example cases, found nothing at $CASES: run cargo build --workspace --example cases" >&2
    exit 2
fi

venv=$("$here/venv.sh")

status=0
echo "--- node tests"
timeout 600 "$venv/bin/python" "$here/node_tests.py" ${UPDATE:+--update} || status=1
echo "--- values at an edge"
timeout 300 "$venv/bin/python" "$here/values.py" || status=1
echo "--- operators of classical models"
timeout 300 "$venv/bin/python" "$here/classical.py" --seconds 30 --seed "${SEED:-$RANDOM}" || status=1
echo "--- served models"
# The test models that run for as long as they are let have no answers to compare.
timeout 120 "$venv/bin/python" "$here/served.py" --worker "$worker" --skip endless --skip slow \
    "$root/backends/models" "$root/backends/worker/tests/models" || status=1
echo "--- the same in the worker's ONNX Runtime"
capi=$("$venv/bin/python" -c 'import os, onnxruntime; print(os.path.dirname(onnxruntime.__file__) + "/capi")')
timeout 120 "$venv/bin/python" "$here/served.py" --worker "$worker" --onnxruntime "$capi" --skip endless --skip slow \
    "$root/backends/models" "$root/backends/worker/tests/models" || status=1
echo "--- random graphs"
seconds=${SECONDS_OF_GRAPHS:-60}
timeout $((seconds + 120)) "$venv/bin/python" "$here/graphs.py" --seconds "$seconds" \
    --seed "${SEED:-$RANDOM}" || status=1
exit $status
