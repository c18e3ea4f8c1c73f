#!/usr/bin/env bash
# Faults and abuse through real processes, on loopback only: see README.md beside this file.
#
#   tests/abuse/run.sh                       every row that this machine can run
#   tests/abuse/run.sh --quick               the rows that a loaded two-core machine decides in minutes
#   tests/abuse/run.sh --only 19,24,P4       these rows
#   tests/abuse/run.sh --list                the rows
#
# The programs come from target/debug ($FOREBAY_BIN or --profile release for others). Exit status 0 if no
# row failed.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
exec "$("$here/venv.sh")" "$here/suite.py" "$@"
