# What the benchmark scripts beside the peers share; sourced, with these set before:
#   name    of the script, for messages
#   root    of the repository
#   target  cargo's target directory
# shellcheck shell=bash

say() { echo "$name: $*" >&2; }
die() { say "$*"; exit 1; }

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
}

# A port that nobody listens on at the moment.
free_port() {
    local port
    for _ in $(seq 100); do
        port=$((20000 + RANDOM % 12000))
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || { echo "$port"; return; }
    done
    die "no free port found in 100 tries"
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

# Median of the lines of standard input, with so many decimals.
median() {
    sort -n | awk -v f="%.$1f\n" '{ v[NR] = $1 } END {
        printf f, NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2
    }'
}

binary_of() {
    case $1 in
        nginx) command -v "${NGINX:-nginx}" || true ;;
        haproxy) command -v "${HAPROXY:-haproxy}" || true ;;
        envoy) command -v "${ENVOY:-envoy}" || true ;;
        empty) echo "${EMPTY_PROXY:-$target/dist/examples/empty_proxy}" ;;
        forebay) echo "${FOREBAY:-$target/dist/forebay}" ;;
        *) die "unknown peer \"$1\"" ;;
    esac
}

version_of() {
    case $1 in
        nginx) "$(binary_of nginx)" -v 2>&1 | sed 's|.*/||' ;;
        haproxy) "$(binary_of haproxy)" -v | awk 'NR == 1 { print $3 }' ;;
        envoy) "$(binary_of envoy)" --version | sed -n 's|.*/\([0-9.]*\)/.*|\1|p' ;;
        # A binary that was given need not be that of the working tree.
        forebay) [ -z "${FOREBAY:-}" ] || { "$FOREBAY" --version | awk '{ print $NF }'; return; } ;;&
        *) git -C "$root" describe --always --dirty 2>/dev/null || echo unknown ;;
    esac
}

# Builds what is asked for (forebay-load, forebay, empty) unless its binary is given.
build() {
    case $1 in
        forebay-load) [ -n "${FOREBAY_LOAD:-}" ] || set -- -p forebay-loadtest ;;
        forebay) [ -n "${FOREBAY:-}" ] || set -- --no-default-features --bin forebay ;;
        empty) [ -n "${EMPTY_PROXY:-}" ] || set -- --no-default-features --example empty_proxy ;;
        *) return ;;
    esac
    [ $# -eq 1 ] || (cd "$root" && cargo build --profile dist --quiet "$@") || die "cargo build $* failed"
}

# The peers of "$1" that are installed, with a word on those that are not.
installed() {
    local peer
    for peer in $1; do
        if [ -x "$(binary_of "$peer")" ]; then echo "$peer"; else say "$peer: not installed, skipped"; fi
    done
}

# What a table needs to be believed: command, date, machine, neighbours.
setting() {
    echo "- Command: \`$1\`, $(date -u +%Y-%m-%d)"
    echo "- Machine: $(nproc) cores, $(sed -n 's/^model name[[:space:]]*: //p' /proc/cpuinfo | head -n 1), Linux $(uname -r)"
    echo "- Load average of the machine before the start: $neighbours"
}

neighbours=$(cut -d' ' -f1 /proc/loadavg)
