#!/usr/bin/env bash
# What does a proxy cost? CPU time a request, requests a second and p99 of forebay beside nginx, an
# empty Pingora proxy of the same build, and whatever else is installed, in front of a backend that
# answers at once. Runs alternate (A B C A B C …) and medians are compared, because a neighbour on
# the same machine spoils any single run.
#
#   loadtest/overhead.sh [FILE.md]           the table goes to standard output and to FILE.md
#
# Environment, all optional:
#   ROUNDS=3  SECONDS_EACH=5  CONNECTIONS="32 64"
#   PEERS="nginx haproxy envoy empty forebay"
#   FOREBAY, EMPTY_PROXY, FOREBAY_LOAD       binaries; built with the profile dist if not given
#   NGINX, HAPROXY, ENVOY                    binaries of the peers, if not in PATH
#   PROXY_CORE=0 LOAD_CORE=1                 where the proxy, and where wrk and the backend run
set -euo pipefail

rounds=${ROUNDS:-3} seconds=${SECONDS_EACH:-5} connections=${CONNECTIONS:-"32 64"}
peers=${PEERS:-"nginx haproxy envoy empty forebay"}
proxy_core=${PROXY_CORE:-0} load_core=${LOAD_CORE:-1}
here=$(cd "$(dirname "$0")" && pwd) root=$(cd "$(dirname "$0")/.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
work=$(mktemp -d) proxy_pid= backend_pid=

name=overhead
# shellcheck source=peers/common.sh
. "$here/peers/common.sh"
cleanup() { end "$proxy_pid"; end "$backend_pid"; rm -rf "$work"; }
trap cleanup EXIT
trap 'exit 130' INT TERM

fill() { # template -> file, with this run's ports
    sed -e "s|@LISTEN@|$listen|g" -e "s|@BACKEND@|$backend|g" -e "s|@DIR@|$work|g" "$here/peers/overhead/$1" > "$work/$1"
}

# Starts a peer on $listen in front of $backend; sets proxy_pid.
start() {
    local name=$1 binary
    binary=$(binary_of "$name")
    case $name in
        nginx) fill nginx.conf; set -- "$binary" -c "$work/nginx.conf" ;;
        haproxy) fill haproxy.cfg; set -- "$binary" -db -f "$work/haproxy.cfg" ;;
        envoy) fill envoy.yaml
            set -- "$binary" -c "$work/envoy.yaml" --concurrency 1 --disable-hot-restart -l warn ;;
        empty) set -- "$binary" "127.0.0.1:$listen" "127.0.0.1:$backend" 1 ;;
        forebay) fill forebay.toml; set -- "$binary" serve --config "$work/forebay.toml" ;;
    esac
    taskset -c "$proxy_core" "$@" > "$work/$name.out" 2>&1 &
    proxy_pid=$!
}

# Some hundred requests through the proxy: it answers, and answers right.
answers() {
    "$load" run "http://127.0.0.1:$listen" --path /v2/models/synthetic/infer --body "$work/body" \
        --wait 10s --requests 500 -c 8 --warm-up 0s --for 5s --quiet --objective 'errors<=0' \
        > "$work/answers.out" 2>&1
}

# One run of wrk: prints requests/s, p99 in ms, CPU microseconds a request, share of a core in use.
measure() {
    local before after out requests
    before=$(ticks "$proxy_pid")
    out=$(taskset -c "$load_core" wrk -t1 -c"$1" -d"${seconds}s" --latency -s "$here/infer.lua" \
        "http://127.0.0.1:$listen/")
    after=$(ticks "$proxy_pid")
    if grep -qE 'Non-2xx|Socket errors' <<< "$out"; then
        say "errors in a run: $(grep -E 'Non-2xx|Socket errors' <<< "$out" | tr -s ' \n' ' ')"
    fi
    requests=$(awk '/requests in/ { print $1 }' <<< "$out")
    awk -v ticks=$((after - before)) -v hz="$(getconf CLK_TCK)" -v n="$requests" -v s="$seconds" '
        function ms(t) { return t ~ /us$/ ? t / 1000 : t ~ /ms$/ ? t + 0 : t * 1000 }
        /Requests\/sec/ { rate = $2 }
        $1 == "99%" { p99 = ms($2) }
        END {
            if (n + 0 == 0) { n = 1 }
            printf "%.0f %.2f %.1f %.2f\n", rate, p99, ticks / hz / n * 1e6, ticks / hz / s
        }
    ' <<< "$out"
}

# --- what there is
command -v wrk > /dev/null || die "wrk is not installed (apt-get install wrk)"
load=${FOREBAY_LOAD:-$target/dist/forebay-load}
build forebay-load
for peer in $peers; do build "$peer"; done
present=$(installed "$peers")

# --- the backend
taskset -c "$load_core" "$load" backend --fast > "$work/backend.out" &
backend_pid=$!
for _ in $(seq 100); do
    backend=$(sed -n 's|listening on http://127.0.0.1:||p' "$work/backend.out")
    [ -n "$backend" ] && break
    sleep 0.05
done
[ -n "$backend" ] || die "the backend did not start"
printf '{"inputs":[{"name":"input","datatype":"FP32","shape":[1,1],"data":[0.5]}]}' > "$work/body"

# --- the rounds
for round in $(seq "$rounds"); do
    for peer in $present; do
        [ -e "$work/$peer.bad" ] && continue
        listen=$(free_port)
        start "$peer"
        if ! answers; then
            say "$peer: does not answer as it should, skipped: $(tail -n 3 "$work/$peer.out" "$work/answers.out" | tr '\n' ' ')"
            touch "$work/$peer.bad"
            end "$proxy_pid"; proxy_pid=
            continue
        fi
        for c in $connections; do
            result=$(measure "$c")
            say "round $round/$rounds, $peer, $c connections: $result (requests/s, p99 ms, CPU us, cores)"
            echo "$result" >> "$work/$peer.$c"
        done
        end "$proxy_pid"; proxy_pid=
    done
done

# --- the table
column() { awk -v n="$2" '{ print $n }' "$1" | median "$3"; }
table() {
    echo "Proxy overhead: keep-alive POST of 1 KiB, answer of 300 bytes, one worker thread, medians of" \
        "$rounds alternating runs of $seconds s. The proxy runs on one core, wrk and the backend on another."
    echo
    setting loadtest/overhead.sh
    echo
    echo "| proxy | version | connections | requests/s | p99 ms | CPU us/request | cores in use | CPU / nginx | CPU / empty Pingora |"
    echo "|---|---|---|---|---|---|---|---|---|"
    for c in $connections; do
        for peer in $present; do
            [ -s "$work/$peer.$c" ] || continue
            cpu=$(column "$work/$peer.$c" 3 1)
            for base in nginx empty; do
                if [ -s "$work/$base.$c" ]; then
                    ratio=$(awk -v a="$cpu" -v b="$(column "$work/$base.$c" 3 1)" 'BEGIN { printf "%.2f", a / b }')
                else
                    ratio=–
                fi
                printf -v "of_$base" %s "$ratio"
            done
            echo "| $peer | $(version_of "$peer") | $c | $(column "$work/$peer.$c" 1 0) | $(column "$work/$peer.$c" 2 2) | $cpu | $(column "$work/$peer.$c" 4 2) | $of_nginx | $of_empty |"
        done
    done
}
table | tee ${1:+"$1"}
