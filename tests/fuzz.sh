#!/bin/sh
# Fuzzes every target of tests/fuzz for a bounded time, seeded with the recorded calls and the golden cases.
#
# usage: tests/fuzz.sh [TARGET…]; FUZZ_SECONDS for each (default 10)
#
# On the stable toolchain: libFuzzer needs the compiler's coverage, not a sanitizer (these are the flags of cargo-fuzz
# without one). A finding stays in build/fuzz/findings; once it is understood it goes to tests/fuzz/findings/TARGET/, which
# the tests repeat for ever.
set -eu
cd "$(dirname "$0")/.."

host=$(rustc -vV | sed -n 's/^host: //p')
flags='--cfg fuzzing -C passes=sancov-module -C codegen-units=1'
for option in level=4 inline-8bit-counters pc-table trace-compares; do
    flags="$flags -C llvm-args=-sanitizer-coverage-$option"
done
targets=${*:-portmap bandwidth firewall tuning environment result}

# The target is named so that build scripts and procedural macros aren't instrumented.
# shellcheck disable=SC2086 # CARGO_FLAGS is a list of words
RUSTFLAGS="$flags" cargo build ${CARGO_FLAGS:-} --quiet --release --target "$host" --target-dir target/fuzz \
    --manifest-path tests/fuzz/Cargo.toml

seeds() {
    case $1 in
    environment) find tests/fixtures/recorded -name '*.env' ;;
    result) find tests/fixtures/recorded -name '*.stdout.json' ;;
    *) find tests/fixtures/recorded "plugins/$1/testdata" -name "*$1*.stdin.json" -o -name stdin.json -o -name config.json ;;
    esac
    find "tests/fuzz/findings/$1" -type f 2>/dev/null || true
}

for target in $targets; do
    corpus=build/fuzz/corpus/$target
    mkdir -p "$corpus" build/fuzz/findings
    number=0
    for seed in $(seeds "$target"); do
        number=$((number + 1))
        cp "$seed" "$corpus/seed-$number"
    done
    echo "fuzz: $target, $number seeds, ${FUZZ_SECONDS:-10} s"
    "target/fuzz/$host/release/$target" -max_total_time="${FUZZ_SECONDS:-10}" -timeout=5 -rss_limit_mb=1024 -max_len=16384 \
        -print_final_stats=1 -verbosity=0 -artifact_prefix="build/fuzz/findings/$target-" "$corpus" 2>&1 |
        tee "build/fuzz/$target.log" | grep -E 'stat::(number_of_executed_units|new_units_added)|ERROR|panicked|Test unit' || true
    if grep -q 'Test unit written' "build/fuzz/$target.log"; then
        echo "fuzz: $target failed; see build/fuzz/$target.log" >&2
        exit 1
    fi
    grep -q 'number_of_executed_units' "build/fuzz/$target.log" || { tail -n 5 "build/fuzz/$target.log" >&2; exit 1; }
done
