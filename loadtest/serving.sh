#!/usr/bin/env bash
# The cost of serving beyond the engine: the time per request of a saturated worker, divided by the time that
# the engine takes for one request alone. The worker has one executor and one core, which its
# sockets share; the generator has the other. The engine's own time is the worker's word (statistics),
# taken with one client, so that nothing else wants the core. Rounds alternate; medians.
#
#   loadtest/serving.sh [FILE.md]            the table goes to standard output and to FILE.md
#
# Environment, all optional:
#   ROUNDS=5  SECONDS_EACH=4  MODELS="magika silero-vad"  CLIENTS=8
#   FOREBAY, FOREBAY_LOAD                    binaries; built with the profile dist if not given
#   PROXY_CORE=0 LOAD_CORE=1                 where the worker, and where the generator runs
set -euo pipefail

name=serving
# shellcheck source=peers/common.sh
. "$(dirname "$0")/peers/common.sh" "$@"
rounds=${ROUNDS:-5} seconds=${SECONDS_EACH:-4} models=${MODELS:-magika silero-vad} clients=${CLIENTS:-8}
# Not without the demo: the worker is in it.
[ -n "${FOREBAY:-}" ] || (cd "$root" && cargo build --profile "$profile" --quiet --bin forebay)
build forebay-load

port=$(free_port)
launch worker "$proxy_core" "$(binary_of forebay)" worker --models "$root/backends/models" \
    --listen "127.0.0.1:$port" --executors 1
url=http://127.0.0.1:$port
for _ in $(seq 600); do
    curl -sf -m 2 "$url/v2/health/ready" > /dev/null && break
    sleep 0.1
done

# Requests that the engine has run so far, and their nanoseconds in it.
engine() { # MODEL
    curl -sf "$url/v2/models/$1/stats" |
        python3 -c 'import json, sys
times = json.load(sys.stdin)["model_stats"][0]["inference_stats"]["compute_infer"]
print(times["count"], times["ns"])'
}

# A closed loop; prints successes a second.
closed() { # MODEL CLIENTS
    taskset -c "$load_core" "$load" run "$url" --model "$1" --range 0..1 --encoding binary -c "$2" \
        --for "${seconds}s" --warm-up 1s --quiet --json="$work/run.json" > "$work/run.out" 2>&1 || [ $? = 3 ]
    figure "$work/run.json" ok_rate
}

for round in $(seq "$rounds"); do
    for model in $models; do
        before=$(engine "$model")
        closed "$model" 1 > /dev/null
        alone=$(echo "$before $(engine "$model")" | awk '{ printf "%.4f", ($4 - $2) / ($3 - $1) / 1e6 }')
        rate=$(closed "$model" "$clients")
        served=$(awk -v r="$rate" 'BEGIN { printf "%.4f", 1000 / r }')
        over=$(awk -v a="$alone" -v s="$served" 'BEGIN { printf "%.2f", (s / a - 1) * 100 }')
        say "round $round: $model: engine $alone ms, served $served ms, $over % more"
        echo "$alone $served $over $rate" >> "$work/$model"
    done
done

table() {
    local model
    echo "What serving costs beyond the engine, one executor on one core; medians of $rounds rounds."
    echo
    setting loadtest/serving.sh
    echo
    echo "| model | engine alone, ms | a request at saturation, ms | overhead | requests/s |"
    echo "|---|---|---|---|---|"
    for model in $models; do
        echo "| $model | $(column "$model" 1 3) | $(column "$model" 2 3) | $(column "$model" 3 1) % | $(column "$model" 4 0) |"
    done
}
publish table
