#!/bin/sh
# Runs every test of the workspace against the executables in bin/; the runner's closing line comes last.
#
# usage: tests/run.sh (by `make test`, which sets the machine up and builds bin/ first)
set -eu
cd "$(dirname "$0")/.."

if [ "$(id -u)" != 0 ]; then
    echo "test: the tests make network namespaces and read kernel state, so they need root: sudo make test" >&2
    exit 1
fi
export CNI_CHAIN_BIN="${CNI_CHAIN_BIN:-$PWD/bin}"

# shellcheck disable=SC2086 # CARGO_FLAGS is a list of words
if cargo nextest --version >/dev/null 2>&1; then
    # nextest doesn't run documentation tests.
    cargo test ${CARGO_FLAGS:-} --quiet --workspace --doc
    exec cargo nextest run ${CARGO_FLAGS:-} --workspace --no-fail-fast
fi

# One total, because cargo test closes with the last executable's numbers only.
mkdir -p build
log=build/test.log
status=build/test.status
# shellcheck disable=SC2086
{ cargo test ${CARGO_FLAGS:-} --workspace --no-fail-fast 2>&1 && echo 0 >"$status" || echo 1 >"$status"; } | tee "$log"
awk '/^test result:/ { passed += $4; failed += $6; ignored += $8 }
     END { printf "%d passed, %d failed, %d ignored\n", passed, failed, ignored }' "$log"
exit "$(cat "$status")"
