#!/usr/bin/env bash
# Fuzzes what reads bytes from outside, guided by coverage, with the stable toolchain.
#
#   tests/fuzz/run.sh                        every target, the same inputs each time: the gate
#   tests/fuzz/run.sh --seconds 600 TARGET…  for as long as one likes, with inputs that differ each time
#
# An input that fails is kept in target/fuzz/failures/TARGET and named in the last lines. Make a test of it
# where the code is, and add it to corpus/TARGET. `cargo fuzz run TARGET --fuzz-dir tests/fuzz` works, too,
# and adds the sanitizers of the nightly toolchain.
set -euo pipefail
export RUST_BACKTRACE=0
cd "$(dirname "$0")"
root=$(cd ../.. && pwd)
# Where nothing is said: some seconds a target on a slow machine.
limits=(-runs=100000 -seed=1 -max_total_time=60)
if [[ ${1:-} == --seconds ]]; then
    limits=(-max_total_time="${2:?--seconds: expected a number}")
    shift 2
fi
host=$(rustc -vV | sed -n 's/^host: //p')
target=${CARGO_TARGET_DIR:-$root/target}/fuzz
# The flags of `cargo fuzz`, without its sanitizers, which need a nightly toolchain.
coverage="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4"
coverage+=" -Cllvm-args=-sanitizer-coverage-inline-8bit-counters"
coverage+=" -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares"
command -v c++ >/dev/null || { echo "expected a C++ compiler, which libFuzzer is built with" >&2; exit 1; }
# With --target the flags hold for the targets alone, not for build scripts.
RUSTFLAGS=$coverage cargo build --quiet --locked --release --bins --target "$host" --target-dir "$target"

targets=("$@")
((${#targets[@]})) || targets=(fuzz_targets/*.rs)
failed=()
for name in "${targets[@]}"; do
    name=$(basename "$name" .rs)
    found=$target/corpus/$name
    failures=$target/failures/$name
    mkdir -p "$found" "$failures"
    # The gate begins from the committed inputs alone, so that it does the same each time.
    [[ ${limits[0]} == -runs=* ]] && found=$(mktemp -d)
    if "$target/$host/release/$name" "${limits[@]}" -max_len=8192 -timeout=10 -rss_limit_mb=1024 \
        -artifact_prefix="$failures/" -verbosity=0 -print_final_stats=1 "$found" "corpus/$name" \
        >"$failures/log" 2>&1; then
        printf 'ok      %-20s %s runs\n' "$name" "$(sed -n 's/^stat::number_of_executed_units: *//p' "$failures/log")"
    else
        printf 'FAILED  %-20s see %s\n' "$name" "$failures"
        grep -a -v '^stat::' "$failures/log" | grep -a -A5 -e panicked -e ERROR -e 'Test unit' | head -30
        failed+=("$name")
    fi
    [[ ${limits[0]} != -runs=* ]] || rm -r "$found"
done
printf '%d targets, %d failed\n' "${#targets[@]}" "${#failed[@]}"
((${#failed[@]} == 0))
