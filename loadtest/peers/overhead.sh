#!/usr/bin/env bash
# The cost of a proxy: requests a second, p99, CPU time a request and memory of forebay beside
# nginx, an empty Pingora proxy of the same build, and other proxies that are installed, in front of a
# backend that answers at once: as fast as they can, at a rate that all of them hold, and over TLS.
#
#   loadtest/peers/overhead.sh [FILE.md]     the table goes to standard output and to FILE.md
#
# Environment, all optional, beside what common.sh takes:
#   SECONDS_EACH=3  CONNECTIONS=64  RATE=2000  PEERS="nginx haproxy envoy traefik empty forebay"
set -euo pipefail

name=overhead
# shellcheck source=common.sh
. "$(dirname "$0")/common.sh" "$@"
seconds=${SECONDS_EACH:-3} connections=${CONNECTIONS:-64} rate=${RATE:-2000}
peers=${PEERS:-"nginx haproxy envoy traefik empty forebay"}
body=$work/body path=/v2/models/synthetic/infer

# Some hundred requests through the proxy: it answers, and answers right.
answers() { # URL
    local tries
    # Some accept connections before they know their routes.
    for tries in $(seq 20); do
        once "$1" && return
        sleep 0.25
    done
    return 1
}
once() {
    "$load" run "$1" --path "$path" --body "$body" --insecure --wait 10s --requests 500 -c 8 --warm-up 0s \
        --for 5s --quiet --objective 'errors<=0' > "$work/answers.out" 2>&1
}

# As fast as it can: prints requests/s, p99 in ms, CPU microseconds a request, resident MiB.
saturate() { # URL
    local before after out requests
    before=$(ticks "$pid")
    out=$(taskset -c "$load_core" wrk -t1 -c"$connections" -d"${seconds}s" --latency -s "$root/loadtest/infer.lua" "$1/")
    after=$(ticks "$pid")
    if grep -qE 'Non-2xx|Socket errors' <<< "$out"; then
        say "errors in a run: $(grep -E 'Non-2xx|Socket errors' <<< "$out" | tr -s ' \n' ' ')"
    fi
    requests=$(awk '/requests in/ { print $1 }' <<< "$out")
    awk -v ticks=$((after - before)) -v hz="$(getconf CLK_TCK)" -v n="$requests" -v kib="$(resident "$pid")" '
        function ms(t) { return t ~ /us$/ ? t / 1000 : t ~ /ms$/ ? t + 0 : t * 1000 }
        /Requests\/sec/ { rate = $2 }
        $1 == "99%" { p99 = ms($2) }
        END { printf "%.0f %.2f %.1f %.1f\n", rate, p99, ticks / hz / (n + 0 ? n : 1) * 1e6, kib / 1024 }
    ' <<< "$out"
}

# At the same rate for all: prints p50 and p99 in ms and CPU microseconds a request.
at_rate() { # URL
    local before after status=0 report=$work/rate.json
    before=$(ticks "$pid")
    taskset -c "$load_core" "$load" run "$1" --path "$path" --body "$body" --rate "$rate/s" --arrivals poisson \
        --for "${seconds}s" --warm-up 500ms --quiet --json="$report" > "$work/rate.out" 2>&1 || status=$?
    after=$(ticks "$pid")
    if [ $status = 3 ]; then say "at $rate/s: $(tail -n 1 "$work/rate.out")"; fi
    if [ ! -s "$report" ]; then echo "- - -"; return; fi
    awk -v p50="$(figure "$report" latency.p50)" -v p99="$(figure "$report" latency.p99)" \
        -v n=$(($(figure "$report" requests) + $(figure "$report" warm_up_requests))) \
        -v ticks=$((after - before)) -v hz="$(getconf CLK_TCK)" \
        'BEGIN { printf "%.3f %.3f %.1f\n", p50 * 1e3, p99 * 1e3, ticks / hz / n * 1e6 }'
}

command -v wrk > /dev/null || die "wrk is not installed (apt-get install wrk)"
prepare "$peers"
secrets=yes
certificate || { say "openssl is not installed: no TLS"; secrets=; }
# The same 1,024 bytes for both generators.
awk 'BEGIN {
    head = "{\"inputs\":[{\"name\":\"input\",\"datatype\":\"FP32\",\"shape\":[1,64],\"data\":["
    for (i = 1; i <= 64; i++) numbers = numbers (i > 1 ? "," : "") sprintf("0.%06d", (i * 104729) % 1000000)
    printf "%s%-" (1023 - length(head)) "s}", head, numbers "]}]"
}' > "$body"
backend backend "$load_core" --fast
backend_port=$port

measure() { # PEER ROUND
    local peer=$1 plain=http://127.0.0.1:$listen encrypted=https://127.0.0.1:$secret
    answers "$plain" || { cat "$work/answers.out"; return 1; }
    saturate "$plain" >> "$work/$peer.most" || return 1
    at_rate "$plain" >> "$work/$peer.rate" || return 1
    if [ -n "$secrets" ] && grep -qs "$secret" "$work/$peer".*; then
        answers "$encrypted" || { cat "$work/answers.out"; return 1; }
        saturate "$encrypted" >> "$work/$peer.secret" || return 1
    fi
    say "round $2/$rounds, $peer: $(tail -qn 1 "$work/$peer".{most,rate,secret} 2> /dev/null | tr '\n' ' ')"
}
alternate overhead measure

table() {
    local peer cpu
    echo "**Overhead.** Keep-alive POST of 1 KiB, answer of 300 bytes, one worker thread each; the proxy runs on one" \
        "core, generator and backend on another; medians of $rounds alternating runs of $seconds s. As fast as" \
        "$connections connections go (wrk), at $rate requests/s (forebay-load, Poisson), and over TLS 1.3 (wrk, ECDSA P-256);" \
        "a dash: the empty proxy ends no TLS."
    echo
    setting loadtest/peers/overhead.sh
    echo
    echo "| proxy | version | requests/s | p99 ms | CPU us/request | / nginx | / empty Pingora | MiB | at $rate/s: p50 ms | p99 ms | CPU us/request | / nginx | TLS requests/s | CPU us/request | / nginx |"
    echo "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|"
    for peer in $present; do
        [ -s "$work/$peer.most" ] || continue
        cpu=$(column "$peer.most" 3 1)
        echo "| $peer | $(version_of "$peer") | $(column "$peer.most" 1 0) | $(column "$peer.most" 2 2) | $cpu |" \
            "$(ratio "$cpu" "$(column nginx.most 3 1)") | $(ratio "$cpu" "$(column empty.most 3 1)") |" \
            "$(column "$peer.most" 4 0) | $(column "$peer.rate" 1 2) | $(column "$peer.rate" 2 2) |" \
            "$(column "$peer.rate" 3 1) | $(ratio "$(column "$peer.rate" 3 1)" "$(column nginx.rate 3 1)") |" \
            "$(column "$peer.secret" 1 0) | $(column "$peer.secret" 3 1) |" \
            "$(ratio "$(column "$peer.secret" 3 1)" "$(column nginx.secret 3 1)") |"
    done
}
publish table
