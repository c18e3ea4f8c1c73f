# The shared part of the benchmark scripts; sourced first, with `name` set to the script's own for messages.
# It gives them:
#   root target here           the repository, cargo's target directory, this folder
#   work                       a directory of their own, removed at the end
#   load, synthetic            the load generator, and the worker that stands for a backend
#   PROXY_CORE=0, LOAD_CORE=1
#   FILE                       where the table goes, besides standard output
# and ends every program that they have started, however they end.
#
# It takes from the environment, all optional:
#   ROUNDS=3                                 more take longer, and are quieter
#   FOREBAY, EMPTY_PROXY,                    binaries; built with the profile dist if not given
#   FOREBAY_LOAD, FOREBAY_WORKER
#   NGINX, HAPROXY, ENVOY, TRAEFIK           binaries of the peers, if not in PATH
#   PROXY_CORE=0 LOAD_CORE=1                 where the proxy, and where generator and backends run
# shellcheck shell=bash

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd) root=$(cd "$here/../.." && pwd)
profile=${PROFILE:-dist} target=${CARGO_TARGET_DIR:-$root/target}
built=$target/$profile
load=${FOREBAY_LOAD:-$built/forebay-load} synthetic=${FOREBAY_WORKER:-$built/forebay-worker}
rounds=${ROUNDS:-3}
proxy_core=${PROXY_CORE:-0} load_core=${LOAD_CORE:-1}
work=$(mktemp -d) started=
cleanup() {
    local pid
    for pid in $started; do end "$pid"; done
    rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

say() { echo "$name: $*" >&2; }
die() { say "$*"; exit 1; }

# Starts a program on a core, with its output in $work/NAME.out; sets pid.
launch() { # NAME CORE COMMAND...
    local out=$work/$1.out core=$2
    shift 2
    # Before the program is there, someone may look into what it says.
    : > "$out"
    taskset -c "$core" "$@" > "$out" 2>&1 &
    pid=$! started="$started $!"
}

# Ends a process that we started, and waits until it is gone: politely, then not.
end() {
    local pid=$1 tries
    [ -n "$pid" ] && kill -TERM "$pid" 2>/dev/null || return 0
    for tries in $(seq 50); do
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.1
    done
    kill -KILL "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
    started=${started/ $pid/}
}

# A port on which no program listens at the moment.
free_port() {
    local port
    for _ in $(seq 100); do
        port=$((20000 + RANDOM % 12000))
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || { echo "$port"; return; }
    done
    die "no free port found in 100 tries"
}

# A synthetic backend; sets port.
backend() { # NAME CORE FLAGS...
    local out=$work/$1.out
    launch "$1" "$2" "$synthetic" --synthetic "${@:3}"
    for _ in $(seq 100); do
        port=$(sed -n 's|listening on http://127.0.0.1:||p' "$out")
        [ -z "$port" ] || return 0
        sleep 0.05
    done
    die "a backend did not start"
}

# The mixed fleet: four backends with four slots, the last one three times as slow; sets ports.
fleet() {
    local i slow
    ports=()
    for i in 0 1 2 3; do
        slow=1
        [ "$i" -lt 3 ] || slow=3
        backend "backend.$i" "$load_core" --slots 4 --slow "$slow"
        ports[i]=$port
    done
}

# The scenario of the fleet at another rate and length; the seed of a round decides arrivals and
# demands, live and simulated.
scenario() { # RATE WARM_UP SECONDS > FILE
    sed -e "s|^rate = .*|rate = \"$1/s\"|" -e "s|^warm_up = .*|warm_up = \"$2s\"|" \
        -e "s|^for = .*|for = \"$3s\"|" "$root/loadtest/scenarios/fleet.toml"
}

# Fills a configuration in with this run's ports, and starts the peer; sets pid and listen.
start_peer() { # PEER KIND [POLICY], where KIND is a folder of configurations
    local peer=$1 kind=$2 policy=${3:-} binary file extra=()
    listen=$(free_port) secret=$(free_port)
    binary=$(binary_of "$peer")
    for file in "$here/$kind/$peer".*; do
        [ -e "$file" ] || continue
        sed -e "s|@LISTEN@|$listen|g" -e "s|@SECRET@|$secret|g" -e "s|@DIR@|$work|g" \
            -e "s|@BACKEND@|${backend_port:-0}|g" -e "s|@E1@|${ports[0]:-0}|g" \
            -e "s|@E2@|${ports[1]:-0}|g" -e "s|@E3@|${ports[2]:-0}|g" \
            -e "s|@E4@|${ports[3]:-0}|g" ${policy:+-e "s|^policy = .*|policy = \"$policy\"|"} \
            "$file" > "$work/$(basename "$file")"
    done
    case $peer in
        nginx) extra=(-c "$work/nginx.conf") ;;
        haproxy) extra=(-db -f "$work/haproxy.cfg") ;;
        envoy) extra=(-c "$work/envoy.yaml" --concurrency 1 --disable-hot-restart -l warn) ;;
        traefik) extra=(--configFile="$work/traefik.yaml") ;;
        empty) extra=("127.0.0.1:$listen" "127.0.0.1:$backend_port" 1) ;;
        forebay) extra=(serve --config "$work/forebay.toml") ;;
    esac
    GOMAXPROCS=1 launch "$peer" "$proxy_core" "$binary" "${extra[@]}"
}

# Round after round each peer is started and measured (A B C A B C …), because a neighbour on the same
# machine spoils any single run. One that fails, and says why on standard output, is skipped from then on.
alternate() { # KIND FUNCTION
    local round peer
    for round in $(seq "$rounds"); do
        for peer in $present; do
            [ -e "$work/$peer.bad" ] && continue
            start_peer "$peer" "$1"
            if ! "$2" "$peer" "$round" > "$work/why"; then
                say "$peer: skipped from here on: $(tail -n 3 "$work/$peer.out" "$work/why" | tr '\n' ' ')"
                touch "$work/$peer.bad"
            fi
            end "$pid"
        done
    done
}

# A certificate for those that end TLS: $work/cert.pem, key.pem, and both in one file.
certificate() {
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=bench \
        -keyout "$work/key.pem" -out "$work/cert.pem" 2> /dev/null || return 1
    cat "$work/cert.pem" "$work/key.pem" > "$work/tls.pem"
}

# CPU ticks of a process and all below it: nginx works in a child of its master.
ticks() {
    local pid=$1 child sum
    # The name, which may contain anything, is cut off: user and system time are then 12th and 13th.
    sum=$(sed 's/.*) //' "/proc/$pid/stat" | awk '{ print $12 + $13 }')
    for child in $(cat /proc/"$pid"/task/*/children 2>/dev/null); do
        sum=$((sum + $(ticks "$child")))
    done
    echo "$sum"
}

# Resident memory of a process and all below it, in KiB; pages that they share count for each.
resident() {
    local pid=$1 child sum
    sum=$(awk '/^VmRSS:/ { print $2 }' "/proc/$pid/status")
    for child in $(cat /proc/"$pid"/task/*/children 2>/dev/null); do
        sum=$((sum + $(resident "$child")))
    done
    echo "${sum:-0}"
}

# A number from a report, by its path of one or two keys: `error_share`, `latency.p99`.
figure() { # REPORT PATH
    awk -v path="$2" '
        BEGIN { if (split(path, key, "\\.") > 1) { inner = substr(path, length(key[1]) + 2) } }
        /^  "/ { block = $1; gsub(/[":]/, "", block) }
        { field = $1; sub(/^"/, "", field); sub(/":$/, "", field); value = $2; sub(/,$/, "", value) }
        inner == "" && /^  "/ && field == key[1] { print value; exit }
        inner != "" && /^    "/ && block == key[1] && field == inner { print value; exit }
    ' "$1"
}

# Median of the lines of standard input, with so many decimals; – if there are none.
median() {
    sort -g | awk -v f="%.$1f\n" '{ v[NR] = $1 } END {
        if (NR == 0) { print "–"; exit }
        printf f, NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2
    }'
}

# Median of a column of the figures of one row of the table.
column() { # FILE COLUMN DECIMALS
    if [ -s "$work/$1" ]; then awk -v n="$2" '$n != "-" { print $n }' "$work/$1" | median "$3"; else echo –; fi
}

lines() { if [ -e "$work/$1" ]; then wc -l < "$work/$1"; else echo 0; fi; }

# A quotient, – where it makes no sense.
ratio() { awk -v a="$1" -v b="$2" 'BEGIN { if (a + 0 > 0 && b + 0 > 0) printf "%.2f", a / b; else printf "–" }'; }

binary_of() {
    local found
    case $1 in
        nginx) command -v "${NGINX:-nginx}" || true ;;
        haproxy) command -v "${HAPROXY:-haproxy}" || true ;;
        traefik) command -v "${TRAEFIK:-traefik}" || true ;;
        envoy)
            found=$(command -v "${ENVOY:-envoy}") || return 0
            # The Python package wraps it in a script, which would be measured, too.
            compgen -G "$(dirname "$found")/../lib/python3*/site-packages/envoy/_bin/envoy" || echo "$found" ;;
        empty) echo "${EMPTY_PROXY:-$built/examples/empty_proxy}" ;;
        forebay) echo "${FOREBAY:-$built/forebay}" ;;
        *) die "unknown peer \"$1\"" ;;
    esac
}

version_of() {
    case $1 in
        nginx) "$(binary_of nginx)" -v 2>&1 | sed 's|.*/||' ;;
        haproxy) "$(binary_of haproxy)" -v | awk 'NR == 1 { sub(/-.*/, "", $3); print $3 }' ;;
        traefik) "$(binary_of traefik)" version | awk '/^Version/ { print $2 }' ;;
        envoy) "$(binary_of envoy)" --version | sed -n 's|.*/\([0-9.]*\)/.*|\1|p' ;;
        # Those that are built here are as old as the working tree says; one that was given need not be.
        *) case $1 in forebay) echo "${REVISION:-$revision}" ;; *) echo "same build" ;; esac ;;
    esac
}
revision=$(git -C "$root" describe --always --dirty 2>/dev/null || echo unknown)

# Builds what is asked for (forebay-load, forebay-worker, forebay, empty) unless its binary is given.
build() {
    case $1 in
        forebay-load) [ -n "${FOREBAY_LOAD:-}" ] || set -- -p forebay-loadtest ;;
        forebay-worker) [ -n "${FOREBAY_WORKER:-}" ] || set -- -p forebay-worker ;;
        forebay) [ -n "${FOREBAY:-}" ] || set -- --no-default-features --bin forebay ;;
        empty) [ -n "${EMPTY_PROXY:-}" ] || set -- --no-default-features --example empty_proxy ;;
        *) return ;;
    esac
    [ $# -eq 1 ] || (cd "$root" && cargo build --profile "$profile" --quiet "$@") || die "cargo build $* failed"
}

# The peers of "$1" that are installed, with a word on those that are not.
installed() {
    local peer
    for peer in $1; do
        if [ -x "$(binary_of "$peer")" ]; then echo "$peer"; else say "$peer: not installed, skipped"; fi
    done
}

# Everything is built, and what is installed is found; sets present.
prepare() { # PEERS
    local peer
    build forebay-load
    build forebay-worker
    for peer in $1; do build "$peer"; done
    present=$(installed "$1" | xargs)
    [ -n "$present" ] || die "none of the peers is installed: $1"
}

# Ticks of all processors that were not idle, since the machine's start.
busy_ticks() { awk 'NR == 1 { print $2 + $3 + $4 + $7 + $8 }' /proc/stat; }
# Ticks of what this shell had started and waited for when the table was begun.
own_ticks() {
    awk -v hz="$(getconf CLK_TCK)" 'NR == 2 {
        for (i = 1; i <= 2; i++) { split($i, t, /[ms]/); s += t[1] * 60 + t[2] }
        print int(s * hz)
    }' "$work/times"
}

# The facts that every table states: command, date, machine, neighbours.
setting() { # COMMAND
    local all=$(($(busy_ticks) - busy_before)) mine
    mine=$(own_ticks)
    echo "- Command: \`$1\`, $(date -u +%Y-%m-%d); profile \`$profile\`"
    echo "- Machine: $(nproc) cores, $(sed -n 's/^model name[[:space:]]*: //p' /proc/cpuinfo | head -n 1), Linux $(uname -r)"
    echo "- Neighbours: load average $neighbours before the start, $(cut -d' ' -f1 /proc/loadavg) at the end; $(awk -v a=$all -v m="$mine" -v s=$((SECONDS - seconds_before)) -v n="$(nproc)" -v hz="$(getconf CLK_TCK)" 'BEGIN {
        o = a - m; if (o < 0) o = 0; printf "others had %.0f %% of its CPU time", o / (s * n * hz + 1) * 100 }') meanwhile"
}

neighbours=$(cut -d' ' -f1 /proc/loadavg) busy_before=$(busy_ticks) seconds_before=$SECONDS
FILE=${1:-}
# Writes what a function prints to standard output and to FILE. Not through a pipe: only the shell
# that waited for a program knows how long it ran.
publish() {
    times > "$work/times"
    "$1" > "$work/table"
    [ -z "$FILE" ] || cp "$work/table" "$FILE"
    cat "$work/table"
}
