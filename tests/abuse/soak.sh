#!/usr/bin/env bash
# Honest clients beside faults that are drawn at random: tests/abuse/soak.sh --minutes 30 --seed 7
# See README.md beside this file. Exit status 0 if nothing failed that a rule does not explain.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
exec "$("$here/venv.sh")" "$here/soak.py" "$@"
