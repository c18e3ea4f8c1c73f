#!/usr/bin/env bash
# The effect of dying workers on clients: kill -9 of one under load, of half of them at once, SIGSTOP of
# one, and one that dies and comes back every second. Four backends with four slots, log-normal
# demands of 20 ms, Poisson arrivals at 250/s: two of them can carry it.
#
#   loadtest/faults.sh [FILE.md]             the table goes to standard output and to FILE.md
#
# Exit status 1 if a client saw an error where none may be, or p99 is beyond the attempt's timeout of
# 200 ms and 50 ms where one is stopped. Environment, all optional:
#   SECONDS_EACH=20 RATE=250                 how long and how much
#   FAULTS="nothing kill_one kill_half stop_one flap_one"
#   FOREBAY, FOREBAY_LOAD, FOREBAY_WORKER    binaries; built with the profile dist if not given
#   PROXY_CORE=0 LOAD_CORE=1                 where the proxy, and where generator and backends run
set -euo pipefail

name=faults
# shellcheck source=peers/common.sh
. "$(dirname "$0")/peers/common.sh" "$@"
seconds=${SECONDS_EACH:-20} rate=${RATE:-250} failed=0
faults=${FAULTS:-nothing kill_one kill_half stop_one flap_one}

# (Re)starts backend number $1 on its port.
start() {
    launch "backend.$1" "$load_core" "$synthetic" --synthetic --slots 4 --listen "127.0.0.1:${ports[$1]}"
    pids[$1]=$pid
}
crash() { kill -KILL "${pids[$1]}" && wait "${pids[$1]}" 2> /dev/null || true; }

# The faults; each lasts as long as the run.
nothing() { :; }
kill_one() { sleep 4; crash 0; sleep 6; start 0; }
kill_half() { sleep 4; crash 0; crash 1; sleep 6; start 0; start 1; }
stop_one() { sleep 4; kill -STOP "${pids[0]}"; sleep 6; kill -CONT "${pids[0]}"; }
flap_one() {
    local end=$((SECONDS + seconds))
    while [ $SECONDS -lt $end ]; do sleep 1; crash 0; sleep 1; start 0; done
}

# One run with a fault; a row of the table.
row() { # FAULT MOST_P99_MS WORDS
    [[ " $faults " = *" $1 "* ]] || return 0
    local i run proxy share p50 p99 left
    ports=() pids=()
    for i in 0 1 2 3; do ports[i]=$(free_port); start "$i"; done
    listen=$(free_port) admin=$(free_port)
    sed -e "s|@LISTEN@|$listen|; s|@ADMIN@|$admin|; s|@DIR@|$work|" \
        -e "s|@E@|$(printf '"127.0.0.1:%s", ' "${ports[@]}")|" > "$work/forebay.toml" << 'TOML'
[server]
admin = "127.0.0.1:@ADMIN@"
access_log = "@DIR@/access.log"
threads = 1
[[listener]]
address = "127.0.0.1:@LISTEN@"
[pool.workers]
endpoints = [@E@]
retry = { attempt_timeout = "200ms" }
hedge = {}
[[route]]
name = "all"
pool = "workers"
deadline = "2s"
TOML
    launch forebay "$proxy_core" "$(binary_of forebay)" --log-format json serve --config "$work/forebay.toml"
    proxy=$pid
    taskset -c "$load_core" "$load" run "http://127.0.0.1:$listen" --model synthetic --rate "$rate/s" \
        --arrivals poisson --demand lognormal:20ms:0.5 --for "${seconds}s" --warm-up 3s --wait 15s --quiet \
        --json="$work/$1.json" > "$work/run.out" 2>&1 &
    run=$!
    "$1"
    wait "$run" || [ $? -ne 2 ] || die "$(tail -n 3 "$work/run.out")"
    share=$(figure "$work/$1.json" error_share) p50=$(millis p50 "$1") p99=$(millis p99 "$1")
    left=$(grep -c '"from":"ready"' "$work/forebay.out" || true)
    echo "| $3 | $((rate * seconds)) | $share | $p50 | $p99 | $(metric retries) | $(metric hedges)" \
        "| $(metric ejections) | $left |" >> "$work/rows"
    if awk -v s="$share" -v p="$p99" -v most="$2" 'BEGIN { exit !(s + 0 > 0 || p + 0 > most) }'; then
        failed=1
        say "$1: $(grep -A 8 '"outcomes"' "$work/$1.json" | tr -d '\n' | tr -s ' ')"
        grep -v '"status":200' "$work/access.log" | head -n 5 >&2 || true
    fi
    end "$proxy"
    for i in 0 1 2 3; do end "${pids[$i]}"; done
}

millis() { figure "$work/$2.json" "latency.$1" | awk '{ printf "%.1f", $1 * 1e3 }'; }
# The sum of a counter of the proxy over all its series.
metric() {
    curl -s "http://127.0.0.1:$admin/metrics" |
        awk -v name="forebay_$1_total{" 'index($1, name) == 1 { sum += $2 } END { print sum + 0 }'
}

prepare forebay
row nothing 1000 "nothing"
row kill_one 1000 "kill -9 of one of four, for 6 s"
row kill_half 1000 "kill -9 of two of four at once, for 6 s"
row stop_one 250 "SIGSTOP of one, for 6 s"
row flap_one 1000 "one dies and comes back every second"

table() {
    setting "loadtest/faults.sh"
    echo
    echo "| fault | requests | errors | p50 ms | p99 ms | retries | hedges | ejections | times one left rotation |"
    echo "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    cat "$work/rows"
}
publish table
exit $failed
