#!/bin/sh
# Checks every shell script of the repository: the syntax always, shellcheck where it is installed.
set -eu
cd "$(dirname "$0")/.."

for script in deploy/*.sh tests/*.sh; do sh -n "$script"; done
bash -n .ci/run
if command -v shellcheck >/dev/null 2>&1; then
    shellcheck deploy/*.sh tests/*.sh .ci/run
else
    echo "lint: shellcheck is not installed; only the scripts' syntax was checked" >&2
fi
