#!/usr/bin/env bash
# Proof by third-party clients: NVIDIA's tritonclient over HTTP and gRPC, through the proxy
# and straight, and OpenAI's client, answers compared with ONNX Runtime. Needs a built forebay ($FOREBAY, or target/debug/forebay) and Python 3.11+;
# everything else goes into a virtual environment under target/, so that a second run is fast.
#
#   tests/clients/run.sh              all checks; exit status 0 if all passed
#   SEED=7 tests/clients/run.sh       the random inputs of an earlier run again
set -euo pipefail

# Longest that one file of checks may take, in seconds; each needs about 30 with a debug build.
limit=300

root=$(cd "$(dirname "$0")/../.." && pwd)
here=$root/tests/clients
target=${CARGO_TARGET_DIR:-$root/target}
export FOREBAY=${FOREBAY:-$target/debug/forebay}
if [[ ! -x $FOREBAY ]]; then
    echo "expected a built proxy, found nothing at $FOREBAY: run cargo build first" >&2
    exit 2
fi

venv=$("$here/venv.sh")

# Each script stops what it started when it is asked to end (TERM), so nothing is left behind.
status=0
for proof in proof extensions embeddings; do
    echo "--- $proof"
    timeout --signal=TERM --kill-after=20 "$limit" "$venv/bin/python" "$here/$proof.py" || status=1
done
exit $status
