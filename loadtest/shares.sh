#!/usr/bin/env bash
# Do models share a worker fairly? The latency of a light model (about 1 ms) alone, and beside a heavy
# one (about 100 ms) that is asked by as many clients as keep every executor busy, on the same
# executors at equal weights. Two kinds of heavy models: one whose graph has many nodes, between which
# it lends its executor, and one that is a single node, which has to leave one executor free. Runs
# alternate, and medians are compared.
#
#   loadtest/shares.sh [FILE.md]             the table goes to standard output and to FILE.md
#
# Environment, all optional:
#   ROUNDS=5  SECONDS_EACH=5  RATE=50/s  EXECUTORS=2
#   LIGHT=70  FINE=400  COARSE=10000         sizes: sides of matrices, steps of an LSTM
#   WORKER="target/release/forebay worker"   built if not given
#   FOREBAY_LOAD                             built if not given
set -euo pipefail

name=shares
: "${PROFILE:=release}"
# shellcheck source=peers/common.sh
. "$(dirname "$0")/peers/common.sh" "$@"
rounds=${ROUNDS:-5} seconds=${SECONDS_EACH:-5} rate=${RATE:-50/s} executors=${EXECUTORS:-2}
light=${LIGHT:-70} fine=${FINE:-400} coarse=${COARSE:-10000}

[ -n "${WORKER:-}" ] || (cd "$root" && cargo build --profile "$profile" --bin forebay)
build forebay-load
worker=${WORKER:-$built/forebay worker}

models=$root/backends/worker/tests/models
put() { # name, model, warm-up shape
    mkdir -p "$work/models/$1/1"
    cp "$models/$2/1/model.onnx" "$work/models/$1/1/"
    printf '[[input]]\nname = "x"\nwarm_up = %s\n' "$3" > "$work/models/$1/model.toml"
}
put light slow "[$light]"
put fine slow "[$fine]"
put coarse endless "[$coarse, 1, 3]"

port=$(free_port)
# shellcheck disable=SC2086
launch worker "0-$(($(nproc) - 1))" $worker --models "$work/models" --listen "127.0.0.1:$port" --executors "$executors"
url=http://127.0.0.1:$port

# One run of the light model: prints p50 and p99 in milliseconds.
measure() {
    "$load" run "$url" --model light --shape "x:$light" --range 0..0.2 --encoding binary --rate "$rate" --arrivals poisson \
        --for "${seconds}s" --warm-up 1s --quiet --json="$work/light.json" > "$work/light.out" || [ $? = 3 ]
    [ "$(figure "$work/light.json" error_share)" = 0.0 ] || die "expected answers alone: $(cat "$work/light.out")"
    awk -v p50="$(figure "$work/light.json" latency.p50)" -v p99="$(figure "$work/light.json" latency.p99)" \
        'BEGIN { printf "%.2f %.2f\n", p50 * 1e3, p99 * 1e3 }'
}

# The heavy model in the background, two clients for each executor.
heavy() {
    # Numbers whose products neither overflow nor vanish.
    local shape=x:$fine range=0..0.08
    [ "$1" = coarse ] && shape=x:$coarse,1,3 range=0..1
    launch heavy "0-$(($(nproc) - 1))" "$load" run "$url" --model "$1" --shape "$shape" --range "$range" \
        --encoding binary -c $((2 * executors)) --for "$((seconds + 5))s" --warm-up 0s --timeout 60s --quiet
}

for _ in $(seq 600); do
    curl -sf "$url/v2/health/ready" > /dev/null && break
    sleep 0.1
done
grep -o 'model=.*took_ms=[0-9]*' "$work/worker.out" >&2 || true
for round in $(seq "$rounds"); do
    for case in alone fine coarse; do
        if [ $case != alone ]; then heavy $case; sleep 1; fi
        measure >> "$work/$case"
        say "round $round/$rounds, $case: $(tail -n 1 "$work/$case") (p50 p99 ms)"
        [ $case = alone ] || end "$pid"
        sleep 0.5
    done
done

table() {
    local case p99 label
    echo "A light model alone, and beside a heavy one that keeps every executor busy; medians of $rounds runs."
    echo
    setting loadtest/shares.sh
    echo
    echo "| light model | p50 ms | p99 ms | p99 / alone |"
    echo "|---|---|---|---|"
    for case in alone fine coarse; do
        p99=$(column $case 2 2)
        label="beside a heavy one of $case nodes"
        [ $case = alone ] && label=alone
        echo "| $label | $(column $case 1 2) | $p99 | $(ratio "$p99" "$(column alone 2 2)") |"
    done
}
publish table
