#!/usr/bin/env bash
# The cost of the response cache: CPU time a request of the proxy without a cache, with one that has no answer
# (a miss), and with one that has it (a hit), for small JSON and for tensors of 1 KiB in binary form; then the latency
# of hits beside that of misses at one rate. The backend answers at once, so all that is measured is the proxy.
# Rounds alternate; medians.
#
#   loadtest/cache.sh [FILE.md]              the table goes to standard output and to FILE.md
#
# Environment, all optional, beside what peers/common.sh takes:
#   ROUNDS=5  SECONDS_EACH=3  CLIENTS=16  RATE=2000
set -euo pipefail

name=cache
# shellcheck source=peers/common.sh
. "$(dirname "$0")/peers/common.sh" "$@"
rounds=${ROUNDS:-5} seconds=${SECONDS_EACH:-3} clients=${CLIENTS:-16} rate=${RATE:-2000}
build forebay
build forebay-load
build forebay-worker

backend backend "$load_core" --fast
# Two proxies: one that keeps answers, one that does not.
proxy() { # NAME LINES-OF-THE-ROUTE
    listen=$(free_port)
    printf '[[listener]]\naddress = "127.0.0.1:%s"\n[pool.b]\nendpoints = ["127.0.0.1:%s"]\n[[route]]\nname = "r"\npool = "b"\n%b' \
        "$listen" "$port" "$2" > "$work/$1.toml"
    launch "$1" "$proxy_core" "$(binary_of forebay)" serve --config "$work/$1.toml"
}
proxy plain ''
plain_pid=$pid plain=http://127.0.0.1:$listen
proxy caching '[route.cache]\nttl = "1h"\n'
cached_pid=$pid cached=http://127.0.0.1:$listen

# Flags of the two kinds of requests; the second one has four rows of 64 numbers.
flags() { if [ "$1" = JSON ]; then echo --encoding json --batch 1; else echo --encoding binary --batch 4; fi; }

# A run with so many different inputs; prints requests and latencies of its report.
run() { # URL KIND DISTINCT FLAGS...
    # shellcheck disable=SC2046
    taskset -c "$load_core" "$load" run "$1" --model synthetic $(flags "$2") --distinct "$3" --wait 10s "${@:4}" \
        --for "${seconds}s" --quiet --json="$work/run.json" > "$work/run.out" 2>&1 || [ $? = 3 ]
}

# CPU microseconds a request in a closed loop.
cost() { # URL PID KIND DISTINCT
    local before after
    before=$(ticks "$2")
    run "$1" "$3" "$4" -c "$clients" --warm-up 100ms
    after=$(ticks "$2")
    awk -v t=$((after - before)) -v hz="$(getconf CLK_TCK)" \
        -v n=$(($(figure "$work/run.json" requests) + $(figure "$work/run.json" warm_up_requests))) \
        'BEGIN { printf "%.1f\n", t / hz / n * 1e6 }'
}

for round in $(seq "$rounds"); do
    for kind in JSON binary; do
        a=$(cost "$plain" "$plain_pid" $kind 16)
        # More inputs than requests; the seed of the round makes other ones of them.
        b=$(cost "$cached" "$cached_pid" $kind 200000)
        c=$(cost "$cached" "$cached_pid" $kind 16)
        say "round $round: $kind: without a cache $a us, miss $b us, hit $c us"
        echo "$a $b $c" >> "$work/$kind"
    done
    run "$cached" JSON 16 --rate "$rate/s" --arrivals poisson --warm-up 500ms
    hit=$(figure "$work/run.json" latency.p99)
    run "$cached" JSON 200000 --rate "$rate/s" --arrivals poisson --warm-up 500ms
    echo "$hit $(figure "$work/run.json" latency.p50)" | awk '{ print $1 * 1e3, $2 * 1e3 }' >> "$work/latency"
done

table() {
    echo "| requests | without a cache, us | miss, us | hit, us | miss / without | hit / without |"
    echo "|---|---|---|---|---|---|"
    for kind in JSON binary; do
        a=$(column $kind 1 1) b=$(column $kind 2 1) c=$(column $kind 3 1)
        echo "| $kind | $a | $b | $c | $(ratio "$b" "$a") | $(ratio "$c" "$a") |"
    done
    echo
    echo "At $rate/s: p99 of hits $(column latency 1 2) ms, p50 of misses $(column latency 2 2) ms."
}
if [ -n "${1:-}" ]; then table | tee "$1"; else table; fi
