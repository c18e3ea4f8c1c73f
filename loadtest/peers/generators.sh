#!/usr/bin/env bash
# May the load generator be believed? Three questions:
#   - How much can it send? As fast as they can, wrk and forebay-load, one core each, before a server
#     that answers at once on another core; and 10,000 requests/s in the open loop, where its own lag
#     is what counts.
#   - Do others find the same? tritonclient (a thread for each of 8 clients) and Triton's
#     perf_analyzer, through forebay, before a synthetic backend whose rate is known: 4 slots of 10 ms.
#   - Runs alternate, and medians are compared.
#
#   loadtest/peers/generators.sh [FILE.md]   the tables go to standard output and to FILE.md
#
# Environment, all optional:
#   ROUNDS=3  SECONDS_EACH=4  CONNECTIONS=64  RATE=10000
#   PYTHON=python3                           one that has tritonclient[http,grpc], else it is skipped
#   PERF_ANALYZER=perf_analyzer              skipped where it is not installed or does not start
#   FOREBAY, FOREBAY_LOAD, FOREBAY_WORKER    binaries; built with the profile dist if not given
#   PROXY_CORE=0 LOAD_CORE=1                 where server and proxy, and where generators run
set -euo pipefail

name=generators
# shellcheck source=common.sh
. "$(dirname "$0")/common.sh" "$@"
seconds=${SECONDS_EACH:-4} connections=${CONNECTIONS:-64} rate=${RATE:-10000}
python=${PYTHON:-python3} perf_analyzer=${PERF_ANALYZER:-perf_analyzer}
path=/v2/models/synthetic/infer body=$work/body

# CPU seconds of what this shell has waited for so far.
waited() { times > "$work/now"; awk 'NR == 2 { for (i = 1; i <= 2; i++) { split($i, t, /[ms]/); s += t[1] * 60 + t[2] } print s }' "$work/now"; }

# --- how much can it send? Each prints requests/s and CPU microseconds a request.
with_wrk() { # URL
    local before after
    waited > "$work/before"
    taskset -c "$load_core" wrk -t1 -c"$connections" -d"${seconds}s" -s "$root/loadtest/infer.lua" "$1/" > "$work/wrk.out"
    waited > "$work/after"
    before=$(cat "$work/before") after=$(cat "$work/after")
    awk -v cpu="$(awk -v a="$after" -v b="$before" 'BEGIN { print a - b }')" '
        /Requests\/sec/ { rate = $2 } /requests in/ { n = $1 }
        END { printf "%.0f %.1f\n", rate, cpu / n * 1e6 }' "$work/wrk.out" >> "$work/wrk"
}
with_ours() { # URL FLAGS...
    local report=$work/ours.json
    taskset -c "$load_core" "$load" run "$1" --path "$path" --body "$body" -c "$connections" --for "${seconds}s" \
        --warm-up 0s --quiet --json="$report" "${@:2}" > "$work/ours.out" || [ $? = 3 ]
    awk -v rate="$(figure "$report" ok_rate)" -v n="$(figure "$report" requests)" \
        -v cpu="$(figure "$report" generator.cpu_seconds)" 'BEGIN { printf "%.0f %.1f\n", rate, cpu / n * 1e6 }' >> "$work/ours"
}
in_time() { # URL NAME FLAGS...
    local report=$work/$2.json
    taskset -c "$load_core" "$load" run "$1" --path "$path" --body "$body" --rate "$rate/s" --for "${seconds}s" \
        --warm-up 500ms --quiet --json="$report" "${@:3}" > "$work/$2.out" || [ $? = 3 ]
    # The lag stands one level deeper than `figure` looks.
    awk -v rate="$(figure "$report" ok_rate)" '
        /^    "lag": / { lag = 1 }
        lag && $1 == "\"p50\":" { p50 = $2 } lag && $1 == "\"p99\":" { p99 = $2 }
        /^    },?$/ { lag = 0 }
        END { printf "%.0f %.3f %.3f\n", rate, p50 * 1e3, p99 * 1e3 }' "$report" >> "$work/$2"
}

# --- do others find the same? Each appends requests/s.
cat > "$work/client.py" <<'PY'
import sys, threading, time
import numpy
kind, address, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
if kind == "grpc":
    import tritonclient.grpc as client
else:
    import tritonclient.http as client
counts, end = [0] * 8, time.monotonic() + seconds + 0.5
begin = time.monotonic() + 0.5
def call(number):
    server = client.InferenceServerClient(address)
    tensor = client.InferInput("input", [1, 64], "FP32")
    tensor.set_data_from_numpy(numpy.full([1, 64], number, dtype=numpy.float32))
    while time.monotonic() < end:
        answer = server.infer("synthetic", [tensor])
        assert answer.as_numpy("digest").shape == (1,)
        if time.monotonic() >= begin:
            counts[number] += 1
threads = [threading.Thread(target=call, args=(number,)) for number in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(sum(counts) / (time.monotonic() - begin))
PY
with_client() { taskset -c "$load_core" "$python" "$work/client.py" "$1" "127.0.0.1:$listen" "$seconds" >> "$work/client.$1"; }
with_perf() {
    taskset -c "$load_core" "$perf_analyzer" -m synthetic -u "127.0.0.1:$listen" -i "$1" --concurrency-range 8 \
        --measurement-interval $((seconds * 500)) --shape input:1,64 -s 50 2> /dev/null |
        awk '/Throughput:/ { rate = $2 } END { if (rate == "") exit 1; print rate }' >> "$work/perf.$1"
}
with_load() {
    local protocol=http/1.1 report=$work/load.json
    [ "$1" = http ] || protocol=grpc
    taskset -c "$load_core" "$load" run "http://127.0.0.1:$listen" --model synthetic --encoding binary --protocol $protocol \
        -c 8 --streams 1 --for "${seconds}s" --warm-up 500ms --quiet --json="$report" > /dev/null || [ $? = 3 ]
    figure "$report" ok_rate >> "$work/load.$1"
}

prepare forebay
command -v wrk > /dev/null || say "wrk is not installed: no comparison (apt-get install wrk)"
head -c 1024 /dev/zero | tr '\0' ' ' > "$body"
backend backend "$proxy_core" --fast
fast=http://127.0.0.1:$port
for round in $(seq "$rounds"); do
    if command -v wrk > /dev/null; then with_wrk "$fast"; fi
    with_ours "$fast"
    in_time "$fast" sleeping
    in_time "$fast" busy --busy
    say "round $round/$rounds: wrk $(tail -qn 1 "$work/wrk" 2> /dev/null), ours $(tail -n 1 "$work/ours") (requests/s, CPU us), at $rate/s lag $(tail -n 1 "$work/sleeping"), busy $(tail -n 1 "$work/busy") (rate, p50, p99 ms)"
done
end "$pid"

# The configuration that it shares with overhead.sh ends TLS, too.
certificate || die "openssl is not installed, and forebay wants a certificate"
backend known "$proxy_core" --slots 4 --service constant:10ms
backend_port=$port
start_peer forebay overhead
"$load" run "http://127.0.0.1:$listen" --model synthetic --wait 10s --requests 8 -c 1 --warm-up 0s --quiet > /dev/null
clients=
"$python" -c 'import tritonclient.http, tritonclient.grpc' 2> /dev/null && clients="$clients client" ||
    say "tritonclient is not installed: skipped"
"$perf_analyzer" --version > /dev/null 2>&1 && clients="$clients perf" ||
    say "perf_analyzer is not installed, or does not start here: skipped"
for round in $(seq "$rounds"); do
    for kind in http grpc; do
        with_load $kind
        for client in $clients; do "with_$client" $kind || say "$client over $kind: no result"; done
    done
    say "round $round/$rounds: $(tail -qn 1 "$work"/{load,client,perf}.{http,grpc} 2> /dev/null | tr '\n' ' ') (requests/s)"
done

table() {
    local kind row
    echo "**The generator.** Closed loop, $connections connections, 1 KiB, one core for the generator, another for a" \
        "server that answers at once; medians of $rounds alternating runs of $seconds s."
    echo
    setting loadtest/peers/generators.sh
    echo
    echo "| generator | requests/s | / wrk | CPU us/request |"
    echo "|---|---|---|---|"
    for row in wrk ours; do
        [ -s "$work/$row" ] || continue
        echo "| ${row/ours/forebay-load} | $(column $row 1 0) | $(ratio "$(column $row 1 0)" "$(column wrk 1 0)") | $(column $row 2 1) |"
    done
    echo
    echo "| open loop, $rate/s | sent/s | own lag p50 ms | p99 ms |"
    echo "|---|---|---|---|"
    for row in sleeping busy; do
        echo "| ${row/busy/--busy} | $(column $row 1 0) | $(column $row 2 3) | $(column $row 3 3) |"
    done
    echo
    echo "Eight clients through forebay, a backend with four slots of 10 ms: at most 400/s."
    echo
    echo "| client | REST, requests/s | / forebay-load | gRPC, requests/s | / forebay-load |"
    echo "|---|---|---|---|---|"
    for row in load client perf; do
        case $row in load) kind=forebay-load ;; client) kind=tritonclient ;; perf) kind=perf_analyzer ;; esac
        [ -s "$work/$row.http" ] || { echo "| $kind | skipped: not installed | | | |"; continue; }
        echo "| $kind | $(column $row.http 1 1) | $(ratio "$(column $row.http 1 1)" "$(column load.http 1 1)") |" \
            "$(column $row.grpc 1 1) | $(ratio "$(column $row.grpc 1 1)" "$(column load.grpc 1 1)") |"
    done
}
publish table
