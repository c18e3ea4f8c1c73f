#!/usr/bin/env bash
# Is the simulator right? The same scenario (scenarios/fleet.toml: arrivals, demands and fleet) live,
# through forebay and four backends on this machine, and on the virtual clock; medians of the ratios.
#
#   loadtest/fidelity.sh [FILE.md]           the table goes to standard output and to FILE.md
#
# Environment, all optional:
#   ROUNDS=3                                 seeds 1 to ROUNDS
#   POLICIES="least_cost least_inflight"
#   FOREBAY, FOREBAY_LOAD                    binaries; built with the profile dist if not given
#   PROXY_CORE=0 LOAD_CORE=1                 where the proxy, and where generator and backends run
set -euo pipefail

rounds=${ROUNDS:-3} policies=${POLICIES:-"least_cost least_inflight"}
proxy_core=${PROXY_CORE:-0} load_core=${LOAD_CORE:-1}
here=$(cd "$(dirname "$0")" && pwd) root=$(cd "$(dirname "$0")/.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target} scenario=$here/scenarios/fleet.toml
work=$(mktemp -d) proxy_pid= backend_pids=

name=fidelity
# shellcheck source=peers/common.sh
. "$here/peers/common.sh"
cleanup() {
    end "$proxy_pid"
    for pid in $backend_pids; do end "$pid"; done
    rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

# p50 and p99 of a report, in ms.
figures() {
    awk '
        /^  "[a-z_]+": / { block = "" }
        $1 == "\"latency\":" { block = "latency" }
        block == "latency" && $1 == "\"p50\":" { p50 = $2 + 0 }
        block == "latency" && $1 == "\"p99\":" { p99 = $2 + 0 }
        END { printf "%.2f %.2f\n", p50 * 1e3, p99 * 1e3 }
    ' "$1"
}

# The four backends of the scenario; sets ports.
fleet() {
    local i slow
    ports=()
    for i in 0 1 2 3; do
        slow=1
        [ "$i" -lt 3 ] || slow=3
        taskset -c "$load_core" "$load" backend --slots 4 --slow "$slow" > "$work/backend.$i" &
        backend_pids="$backend_pids $!"
    done
    for i in 0 1 2 3; do
        for _ in $(seq 100); do
            ports[i]=$(sed -n 's|listening on http://127.0.0.1:||p' "$work/backend.$i")
            [ -n "${ports[i]}" ] && break
            sleep 0.05
        done
        [ -n "${ports[i]}" ] || die "a backend did not start"
    done
}

# One live run; writes the report to $3.
live() {
    local policy=$1 seed=$2 status=0 listen
    listen=$(free_port)
    sed -e "s|@LISTEN@|$listen|g" -e "s|@DIR@|$work|g" -e "s|@E1@|${ports[0]}|g" \
        -e "s|@E2@|${ports[1]}|g" -e "s|@E3@|${ports[2]}|g" -e "s|@E4@|${ports[3]}|g" \
        -e "s|^policy = .*|policy = \"$policy\"|" "$here/peers/fleet/forebay.toml" > "$work/forebay.toml"
    taskset -c "$proxy_core" "$forebay" serve --config "$work/forebay.toml" > "$work/forebay.out" 2>&1 &
    proxy_pid=$!
    taskset -c "$load_core" "$load" run "$scenario" --target "http://127.0.0.1:$listen" --seed "$seed" \
        --wait 15s --quiet --json="$3" > "$work/run.out" 2>&1 || status=$?
    end "$proxy_pid"; proxy_pid=
    case $status in
        0 | 1) echo >> "$work/$policy.valid" ;;
        3) say "$policy, seed $seed: $(tail -n 1 "$work/run.out")" ;;
        *) die "$(tail -n 3 "$work/run.out" "$work/forebay.out")" ;;
    esac
}

load=${FOREBAY_LOAD:-$target/dist/forebay-load}
build forebay-load
build forebay
forebay=$(binary_of forebay)
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

column() { awk -v n="$2" '{ print $n }' "$work/$1.figures" | median "$3"; }
lines() { if [ -e "$work/$1" ]; then wc -l < "$work/$1"; else echo 0; fi; }
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
        echo "| $policy | $(column "$policy" 1 1) | $(column "$policy" 3 1) | $(column "$policy" 5 2) | $(column "$policy" 2 1) | $(column "$policy" 4 1) | $(column "$policy" 6 2) | $(lines "$policy.valid") of $(lines "$policy.figures") |"
    done
}
table | tee ${1:+"$1"}
