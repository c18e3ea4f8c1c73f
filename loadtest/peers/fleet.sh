#!/usr/bin/env bash
# The tail on a mixed fleet: four synthetic backends with four slots each, the last one three times
# as slow, exponential demands of 20 ms, Poisson arrivals (500/s are 75 % of what the fleet can do).
# The seed of a round decides arrivals and demands, so that every proxy is given the very same work. The
# simulator is given it, too: an oracle that knows every demand says what could be reached.
#
#   loadtest/peers/fleet.sh [FILE.md]        the table goes to standard output and to FILE.md
#
# Environment, all optional, beside what common.sh takes:
#   SECONDS_EACH=24  WARM_UP=8  RATE=500  PEERS="nginx haproxy envoy traefik forebay"
set -euo pipefail

name=fleet
# shellcheck source=common.sh
. "$(dirname "$0")/common.sh" "$@"
seconds=${SECONDS_EACH:-24} warm_up=${WARM_UP:-8} rate=${RATE:-500}
peers=${PEERS:-"nginx haproxy envoy traefik forebay"}

policy_of() {
    case $1 in
        nginx) echo least_conn ;;
        haproxy) echo "leastconn, maxconn 4" ;;
        envoy) echo LEAST_REQUEST ;;
        traefik) echo leasttime ;;
        forebay) sed -n 's/^policy = "\(.*\)"/\1/p' "$here/fleet/forebay.toml" ;;
    esac
}

# How many answers a backend has given, to probes too: the sequence number in its load report.
answers_of() {
    curl -s -m 5 -o /dev/null -D - "http://127.0.0.1:$1/v2" 2> /dev/null |
        grep -i '^endpoint-load-metrics:' | grep -oE 'seq"?[=: ]+[0-9]+' | grep -oE '[0-9]+$' || echo 0
}

# One run; appends to the peer's figures: p50, p99, p99.9 in ms, CPU s / 10k requests, share of the
# slow endpoint and errors in per cent, resident MiB.
measure() {
    local peer=$1 round=$2 before after status=0 i seen=() all=0 slow=0 report
    report=$work/$peer.$round.json
    before=$(ticks "$pid")
    for i in 0 1 2 3; do seen[i]=$(answers_of "${ports[i]}"); done
    taskset -c "$load_core" "$load" run "$work/fleet.toml" --target "http://127.0.0.1:$listen" --seed "$round" \
        --wait 15s --quiet --json="$report" > "$work/run.out" 2>&1 || status=$?
    after=$(ticks "$pid")
    case $status in
        0) echo >> "$work/$peer.valid" ;;
        3) say "$peer, round $round: $(tail -n 1 "$work/run.out")"; [ -s "$report" ] || return 1 ;;
        *) tail -n 3 "$work/run.out"; return 1 ;;
    esac
    for i in 0 1 2 3; do
        slow=$(($(answers_of "${ports[i]}") - seen[i] - 1))
        all=$((all + slow))
    done
    awk -v p50="$(figure "$report" latency.p50)" -v p99="$(figure "$report" latency.p99)" \
        -v p999="$(figure "$report" latency.p99.9)" -v errors="$(figure "$report" error_share)" \
        -v n=$(($(figure "$report" requests) + $(figure "$report" warm_up_requests))) \
        -v ticks=$((after - before)) -v hz="$(getconf CLK_TCK)" -v slow="$slow" -v all="$all" \
        -v kib="$(resident "$pid")" 'BEGIN {
            printf "%.1f %.1f %.1f %.3f %s %.2f %.1f\n", p50 * 1e3, p99 * 1e3, p999 * 1e3,
                ticks / hz / n * 1e4, (all > 0 ? sprintf("%.1f", slow / all * 100) : "-"), errors * 100, kib / 1024
        }' >> "$work/$peer.figures"
    say "round $round/$rounds, $peer: $(tail -n 1 "$work/$peer.figures") (p50 p99 p99.9 ms, CPU s/10k, slow one %, errors %, MiB)"
}

# Runs the same round on the virtual clock.
simulate() { # POLICY ROUND
    local report=$work/sim.json
    "$load" sim "$work/fleet.toml" --policy "$1" --seed "$2" --quiet --json="$report" > /dev/null || [ $? = 1 ]
    awk -v p50="$(figure "$report" latency.p50)" -v p99="$(figure "$report" latency.p99)" \
        -v p999="$(figure "$report" latency.p99.9)" \
        'BEGIN { printf "%.1f %.1f %.1f\n", p50 * 1e3, p99 * 1e3, p999 * 1e3 }' >> "$work/sim.$1"
}

prepare "$peers"
command -v curl > /dev/null || say "curl is not installed: shares of the slow endpoint are not known"
scenario "$rate" "$warm_up" "$seconds" > "$work/fleet.toml"
simulated="adaptive nginx_least_conn central_queue known_means oracle"
fleet
alternate fleet measure
for round in $(seq "$rounds"); do
    for policy in $simulated; do simulate "$policy" "$round"; done
done

table() {
    local peer policy base p99 oracle
    base=$(column nginx.figures 2 1) oracle=$(column sim.oracle 2 1)
    echo "**Tail on a mixed fleet, $rate/s.** Four endpoints with four slots, one of them three times as slow," \
        "exponential demands of 20 ms, Poisson arrivals at $(awk -v r="$rate" 'BEGIN { printf "%.0f", r / 6.6667 }') %" \
        "of what the fleet can do; medians of $rounds alternating runs of $seconds s after $warm_up s of warm-up, the" \
        "same arrivals and demands for all. Times in ms. Below the live rows the same rounds simulated," \
        "without a proxy's own time."
    echo
    setting "RATE=$rate loadtest/peers/fleet.sh"
    echo
    echo "| proxy | version | policy | p50 | p99 | p99.9 | p99 / nginx | p99 / oracle | CPU s / 10k requests | MiB | slow one's share | errors | valid runs |"
    echo "|---|---|---|---|---|---|---|---|---|---|---|---|---|"
    for peer in $present; do
        [ -s "$work/$peer.figures" ] || continue
        p99=$(column "$peer.figures" 2 1)
        echo "| $peer | $(version_of "$peer") | $(policy_of "$peer") | $(column "$peer.figures" 1 1) | $p99 |" \
            "$(column "$peer.figures" 3 1) | $(ratio "$p99" "$base") | $(ratio "$p99" "$oracle") |" \
            "$(column "$peer.figures" 4 2) | $(column "$peer.figures" 7 0) | $(column "$peer.figures" 5 1) % |" \
            "$(column "$peer.figures" 6 2) % | $(lines "$peer.valid") of $(lines "$peer.figures") |"
    done
    base=$(column sim.nginx_least_conn 2 1)
    for policy in $simulated; do
        p99=$(column "sim.$policy" 2 1)
        echo "| *simulated* | | $policy | $(column "sim.$policy" 1 1) | $p99 | $(column "sim.$policy" 3 1) |" \
            "$(ratio "$p99" "$base") | $(ratio "$p99" "$oracle") | | | | | |"
    done
    echo
    echo "In a run that is not valid the generator could not keep up, mostly because of a neighbour on the" \
        "same machine: a row without valid runs must not be quoted."
    [ -z "${BRIEF:-}" ] && [ -s "$work/nginx.figures" ] && [ -s "$work/forebay.figures" ] || return 0
    printf '\nnginx (A) and forebay (B) by `forebay-load compare`:\n\n```\n'
    (cd "$work" && "$load" compare "$(reports nginx)" "$(reports forebay)") || true
    echo '```'
}
reports() { (cd "$work" && echo "$1".*.json | tr ' ' ','); }
publish table
