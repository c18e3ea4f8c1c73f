#!/usr/bin/env bash
# Is the simulator right? The same scenario (scenarios/fleet.toml: arrivals, demands and fleet) live,
# through forebay and four backends on this machine, and on the virtual clock; medians of the ratios.
# The round trip from the proxy to an endpoint depends on the machine, and the simulator needs it as a setting. It
# is measured first, by the proxy's own log, at a load at which no request waits.
#
#   loadtest/fidelity.sh [FILE.md]           the table goes to standard output and to FILE.md
#
# Environment, all optional:
#   ROUNDS=3                                 seeds 1 to ROUNDS
#   RATES="500 600"                          requests/s: 75 % and 90 % of what the fleet can do
#   WARM_UP=8  SECONDS_EACH=24
#   POLICIES="adaptive least_inflight"
#   FOREBAY, FOREBAY_LOAD, FOREBAY_WORKER    binaries; built with the profile dist if not given
#   PROXY_CORE=0 LOAD_CORE=1                 where the proxy, and where generator and backends run
set -euo pipefail

name=fidelity
# shellcheck source=peers/common.sh
. "$(dirname "$0")/peers/common.sh" "$@"
rounds=${ROUNDS:-3} policies=${POLICIES:-"adaptive least_inflight"} rates=${RATES:-500 600}
warm_up=${WARM_UP:-8} seconds=${SECONDS_EACH:-24}

# p50 and p99 of a report, in ms.
figures() {
    awk -v p50="$(figure "$1" latency.p50)" -v p99="$(figure "$1" latency.p99)" \
        'BEGIN { printf "%.2f %.2f\n", p50 * 1e3, p99 * 1e3 }'
}

# A run through a proxy that is started for it, its report in $work/live.json; sets valid.
live() { # POLICY FLAGS...
    local status=0
    rm -f "$work/access.jsonl"
    start_peer forebay fleet "$1"
    taskset -c "$load_core" "$load" run --wait 15s --quiet --json="$work/live.json" "${@:2}" \
        --target "http://127.0.0.1:$listen" > "$work/run.out" 2>&1 || status=$?
    end "$pid"
    valid=1
    case $status in
        0 | 1) ;;
        3) valid=0; say "$(tail -n 1 "$work/run.out")" ;;
        *) die "$(tail -n 3 "$work/run.out" "$work/forebay.out")" ;;
    esac
}

# Microseconds from the proxy to an endpoint and back, without the service: by the three that are not
# slow, since it would hide in the service of the other. As many requests as in the comparison, since
# a server that is asked rarely takes longer to wake.
round_trip() {
    scenario 500 1 4 | sed 's|^demand = .*|demand = "constant:4ms"|' > "$work/light.toml"
    live adaptive "$work/light.toml"
    sed -n 's/.*"status":200.*"forward_us":\([0-9]*\).*/\1/p' "$work/access.jsonl" |
        awk '$1 > 4000 && $1 < 12000 { print $1 - 4000 }' | median 0
}

# The same live and simulated; appends p50 and p99 of both, the ratios, and whether it was valid.
both() { # RATE POLICY SEED
    live "$2" "$work/fleet.toml" --seed "$3"
    "$load" sim "$work/fleet.toml" --policy "$2" --seed "$3" --quiet --json="$work/sim.json" > /dev/null
    echo "$(figures "$work/live.json") $(figures "$work/sim.json")" |
        awk -v valid=$valid '{ print $0, $3 / $1, $4 / $2, valid }' >> "$work/$2.$1"
    say "seed $3, $1/s, $2: $(tail -n 1 "$work/$2.$1") (live p50 p99, simulated p50 p99, ratios, valid)"
}

prepare forebay
fleet
trip=$(round_trip)
say "a round trip takes $trip us"
for seed in $(seq "$rounds"); do
    for rate in $rates; do
        scenario "$rate" "$warm_up" "$seconds" |
            sed "s|^round_trip = .*|round_trip = \"${trip}us\"|" > "$work/fleet.toml"
        for policy in $policies; do both "$rate" "$policy" "$seed"; done
    done
done

table() {
    local policy rate of
    echo "The scenario fleet.toml live and simulated: the same arrivals and demands, medians of $rounds" \
        "seeds of $seconds s; a round trip to an endpoint takes $trip us. Times in ms; a ratio is simulated by live."
    echo
    setting "loadtest/fidelity.sh"
    echo
    echo "| requests/s | policy | p50 live | simulated | ratio | p99 live | simulated | ratio | valid live runs |"
    echo "|---|---|---|---|---|---|---|---|---|"
    for rate in $rates; do
        for policy in $policies; do
            of=$policy.$rate
            echo "| $rate | $policy | $(column "$of" 1 1) | $(column "$of" 3 1) | $(column "$of" 5 2) |" \
                "$(column "$of" 2 1) | $(column "$of" 4 1) | $(column "$of" 6 2) |" \
                "$(awk '{ n += $7 } END { print n + 0 }' "$work/$of") of $(lines "$of") |"
        done
    done
}
publish table
