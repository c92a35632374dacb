#!/bin/sh
# Checks every shell script of the repository.
set -eu
cd "$(dirname "$0")/.."

for script in deploy/*.sh tests/*.sh; do sh -n "$script"; done
bash -n .ci/run
shellcheck deploy/*.sh tests/*.sh .ci/run
