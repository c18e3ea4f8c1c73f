#!/usr/bin/env bash
# Is the simulator right? The same scenario (scenarios/fleet.toml: arrivals, demands and fleet) live,
# through forebay and four backends on this machine, and on the virtual clock; medians of the ratios.
#
#   loadtest/fidelity.sh [FILE.md]           the table goes to standard output and to FILE.md
#
# Environment, all optional:
#   ROUNDS=3                                 seeds 1 to ROUNDS
#   POLICIES="adaptive least_inflight"
#   FOREBAY, FOREBAY_LOAD                    binaries; built with the profile dist if not given
#   PROXY_CORE=0 LOAD_CORE=1                 where the proxy, and where generator and backends run
set -euo pipefail

name=fidelity
# shellcheck source=peers/common.sh
. "$(dirname "$0")/peers/common.sh" "$@"
rounds=${ROUNDS:-3} policies=${POLICIES:-"adaptive least_inflight"}
scenario=$root/loadtest/scenarios/fleet.toml

# p50 and p99 of a report, in ms.
figures() {
    awk -v p50="$(figure "$1" latency.p50)" -v p99="$(figure "$1" latency.p99)" \
        'BEGIN { printf "%.2f %.2f\n", p50 * 1e3, p99 * 1e3 }'
}

# One live run; writes the report to $3.
live() {
    local policy=$1 seed=$2 status=0
    start_peer forebay fleet "$policy"
    taskset -c "$load_core" "$load" run "$scenario" --target "http://127.0.0.1:$listen" --seed "$seed" \
        --wait 15s --quiet --json="$3" > "$work/run.out" 2>&1 || status=$?
    end "$pid"
    case $status in
        0 | 1) echo >> "$work/$policy.valid" ;;
        3) say "$policy, seed $seed: $(tail -n 1 "$work/run.out")" ;;
        *) die "$(tail -n 3 "$work/run.out" "$work/forebay.out")" ;;
    esac
}

prepare forebay
fleet
for seed in $(seq "$rounds"); do
    for policy in $policies; do
        live "$policy" "$seed" "$work/live.json"
        "$load" sim "$scenario" --policy "$policy" --seed "$seed" --quiet --json="$work/sim.json" \
            > /dev/null
        echo "$(figures "$work/live.json") $(figures "$work/sim.json")" |
            awk '{ print $0, $3 / $1, $4 / $2 }' >> "$work/$policy.figures"
        say "seed $seed, $policy: $(tail -n 1 "$work/$policy.figures") (live p50 p99, simulated p50 p99, ratios)"
    done
done

table() {
    local policy
    echo "The scenario fleet.toml live and simulated: the same arrivals and demands, medians of $rounds" \
        "seeds. Times in ms; a ratio is simulated by live."
    echo
    setting "loadtest/fidelity.sh"
    echo
    echo "| policy | p50 live | simulated | ratio | p99 live | simulated | ratio | valid live runs |"
    echo "|---|---|---|---|---|---|---|---|"
    for policy in $policies; do
        echo "| $policy | $(column "$policy.figures" 1 1) | $(column "$policy.figures" 3 1) | $(column "$policy.figures" 5 2) | $(column "$policy.figures" 2 1) | $(column "$policy.figures" 4 1) | $(column "$policy.figures" 6 2) | $(lines "$policy.valid") of $(lines "$policy.figures") |"
    done
}
publish table
