#!/usr/bin/env bash
# The tail on a mixed fleet: four synthetic backends with four slots each, the last one three times
# as slow, exponential demands of 20 ms, Poisson arrivals at 75 % of what the fleet can do. The seed
# of a round decides arrivals and demands, so that every proxy is given the very same work; rounds
# alternate (A B C A B C …) and medians are compared.
#
#   loadtest/peers/fleet.sh [FILE.md]        the table goes to standard output and to FILE.md
#
# Environment, all optional:
#   ROUNDS=3  SECONDS_EACH=24  WARM_UP=8  RATE=500
#   PEERS="nginx haproxy envoy forebay"
#   FOREBAY, FOREBAY_LOAD                    binaries; built with the profile dist if not given
#   NGINX, HAPROXY, ENVOY                    binaries of the peers, if not in PATH
#   PROXY_CORE=0 LOAD_CORE=1                 where the proxy, and where generator and backends run
set -euo pipefail

rounds=${ROUNDS:-3} seconds=${SECONDS_EACH:-24} warm_up=${WARM_UP:-8} rate=${RATE:-500}
peers=${PEERS:-"nginx haproxy envoy forebay"}
proxy_core=${PROXY_CORE:-0} load_core=${LOAD_CORE:-1}
here=$(cd "$(dirname "$0")" && pwd) root=$(cd "$(dirname "$0")/../.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
work=$(mktemp -d) proxy_pid= backend_pids=

name=fleet
# shellcheck source=common.sh
. "$here/common.sh"
cleanup() {
    end "$proxy_pid"
    for pid in $backend_pids; do end "$pid"; done
    rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

fill() { # template -> file, with this run's ports
    sed -e "s|@LISTEN@|$listen|g" -e "s|@DIR@|$work|g" -e "s|@E1@|${ports[0]}|g" \
        -e "s|@E2@|${ports[1]}|g" -e "s|@E3@|${ports[2]}|g" -e "s|@E4@|${ports[3]}|g" \
        "$here/fleet/$1" > "$work/$1"
}

# Starts a peer on $listen in front of the fleet; sets proxy_pid.
start() {
    local peer=$1 binary
    binary=$(binary_of "$peer")
    case $peer in
        nginx) fill nginx.conf; set -- "$binary" -c "$work/nginx.conf" ;;
        haproxy) fill haproxy.cfg; set -- "$binary" -db -f "$work/haproxy.cfg" ;;
        envoy) fill envoy.yaml
            set -- "$binary" -c "$work/envoy.yaml" --concurrency 1 --disable-hot-restart -l warn ;;
        forebay) fill forebay.toml; set -- "$binary" serve --config "$work/forebay.toml" ;;
        *) die "there is no configuration for \"$peer\"" ;;
    esac
    taskset -c "$proxy_core" "$@" > "$work/$peer.out" 2>&1 &
    proxy_pid=$!
}

policy_of() {
    case $1 in
        nginx) echo least_conn ;;
        haproxy) echo leastconn ;;
        envoy) echo LEAST_REQUEST ;;
        forebay) echo least_cost ;;
    esac
}

# How many answers a backend has given, to probes too: the sequence number in its load report.
answers_of() {
    curl -s -m 5 -o /dev/null -D - -X POST -H 'x-service-demand: 0' -d @"$work/body" \
        "http://127.0.0.1:$1/v2/models/synthetic/infer" 2> /dev/null |
        grep -i '^endpoint-load-metrics:' | grep -oE 'seq"?[=: ]+[0-9]+' | grep -oE '[0-9]+$' || echo 0
}

# One run; appends to the peer's figures: p50 ms, p99 ms, p99.9 ms, CPU s / 10k requests, share of
# the slow endpoint, errors in per cent.
measure() {
    local peer=$1 round=$2 before after status=0 i seen=() all=0 slow=0
    before=$(ticks "$proxy_pid")
    for i in 0 1 2 3; do seen[i]=$(answers_of "${ports[i]}"); done
    taskset -c "$load_core" "$load" run "http://127.0.0.1:$listen" --model synthetic \
        --demand exponential:20ms --rate "$rate/s" --arrivals poisson --seed "$round" --wait 15s \
        --for "${seconds}s" --warm-up "${warm_up}s" --quiet --json="$work/$peer.$round.json" \
        > "$work/run.out" 2>&1 || status=$?
    after=$(ticks "$proxy_pid")
    case $status in
        0) echo >> "$work/$peer.valid" ;;
        3) say "$peer, round $round: $(tail -n 1 "$work/run.out")"
            [ -s "$work/$peer.$round.json" ] || return 1 ;;
        *) return 1 ;;
    esac
    for i in 0 1 2 3; do
        slow=$(($(answers_of "${ports[i]}") - seen[i] - 1))
        all=$((all + slow))
    done
    awk -v ticks=$((after - before)) -v hz="$(getconf CLK_TCK)" -v slow="$slow" -v all="$all" '
        function value() { v = $2; sub(/,$/, "", v); return v }
        /^  "[a-z_]+": / { block = "" }
        $1 == "\"latency\":" { block = "latency" }
        block == "latency" && $1 == "\"p50\":" { p50 = value() }
        block == "latency" && $1 == "\"p99\":" { p99 = value() }
        block == "latency" && $1 == "\"p99.9\":" { p999 = value() }
        /^  "requests":/ { requests += value() }
        /^  "warm_up_requests":/ { requests += value() }
        /^  "error_share":/ { errors = value() }
        END {
            printf "%.1f %.1f %.1f %.2f %.1f %.2f\n", p50 * 1e3, p99 * 1e3, p999 * 1e3,
                ticks / hz / (requests ? requests : 1) * 1e4, (all > 0 ? slow / all * 100 : -1),
                errors * 100
        }
    ' "$work/$peer.$round.json" >> "$work/$peer.figures"
}

# --- what there is
load=${FOREBAY_LOAD:-$target/dist/forebay-load}
build forebay-load
for peer in $peers; do build "$peer"; done
present=$(installed "$peers")
[ -n "$present" ] || die "none of the peers is installed: $peers"
command -v curl > /dev/null || say "curl is not installed: shares of the slow endpoint are not known"
printf '{"inputs":[{"name":"input","datatype":"FP32","shape":[1,1],"data":[0.5]}]}' > "$work/body"

# --- the fleet
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

# --- the rounds
for round in $(seq "$rounds"); do
    for peer in $present; do
        [ -e "$work/$peer.bad" ] && continue
        listen=$(free_port)
        start "$peer"
        if measure "$peer" "$round"; then
            say "round $round/$rounds, $peer: $(tail -n 1 "$work/$peer.figures") (p50 p99 p99.9 ms, CPU s/10k, slow one %, errors %)"
        else
            say "$peer: no run, skipped: $(tail -n 3 "$work/$peer.out" "$work/run.out" | tr '\n' ' ')"
            touch "$work/$peer.bad"
        fi
        end "$proxy_pid"; proxy_pid=
    done
done

# --- the table
column() { awk -v n="$2" '{ print $n }' "$work/$1.figures" | median "$3"; }
table() {
    local peer base=- ratio slow
    echo "Tail on a mixed fleet: four endpoints with four slots, one of them three times as slow; exponential" \
        "demands of 20 ms, Poisson arrivals at $rate/s; medians of $rounds alternating runs of $seconds s after" \
        "$warm_up s of warm-up, the same arrivals and demands for all. Times in ms."
    echo
    setting "loadtest/peers/fleet.sh"
    echo
    echo "| proxy | version | policy | p50 | p99 | p99.9 | p99 / nginx | CPU s / 10k requests | slow one's share | errors | valid runs |"
    echo "|---|---|---|---|---|---|---|---|---|---|---|"
    [ ! -s "$work/nginx.figures" ] || base=$(column nginx 2 1)
    for peer in $present; do
        [ -s "$work/$peer.figures" ] || continue
        ratio=$(awk -v a="$(column "$peer" 2 1)" -v b="$base" 'BEGIN { if (b > 0) printf "%.2f", a / b; else print "–" }')
        slow=$(awk -v s="$(column "$peer" 5 1)" 'BEGIN { print s < 0 ? "–" : s " %" }')
        echo "| $peer | $(version_of "$peer") | $(policy_of "$peer") | $(column "$peer" 1 1) | $(column "$peer" 2 1) | $(column "$peer" 3 1) | $ratio | $(column "$peer" 4 2) | $slow | $(column "$peer" 6 2) % | $(lines "$peer.valid") of $(lines "$peer.figures") |"
    done
    echo
    echo "In a run that is not valid the generator could not keep up, mostly because of a neighbour on the" \
        "same machine: a row without valid runs must not be quoted."
    [ -s "$work/nginx.figures" ] && [ -s "$work/forebay.figures" ] || return 0
    printf '\nnginx (A) and forebay (B) by `forebay-load compare`:\n\n```\n'
    (cd "$work" && "$load" compare "$(reports nginx)" "$(reports forebay)") || true
    echo '```'
}
lines() { if [ -e "$work/$1" ]; then wc -l < "$work/$1"; else echo 0; fi; }
reports() { (cd "$work" && echo "$1".*.json | tr ' ' ','); }
table | tee ${1:+"$1"}
