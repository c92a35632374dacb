#!/bin/sh
# Whether glibc's start is one that common/src/entry/start.rs can take the place of: says nothing, and succeeds if it is.
#
# It is if it defines and needs exactly the names that it did in a version that has been tried: deploy/glibc-start/ has a
# list of each, made as it is made here. For another version, read its csu/libc-start.c beside start.rs, add its list, and
# let `make test` tell.
#
# usage: deploy/knows-start.sh libc.a
set -eu
cd "$(dirname "$0")/.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

ar p "$1" libc-start.o >"$work/start.o" 2>/dev/null
# The first two columns: the name, and where it is defined, if it is.
nm -g --format=posix "$work/start.o" >"$work/names" 2>/dev/null
cut -d ' ' -f 1,2 "$work/names" | LC_ALL=C sort >"$work/sorted"
for known in deploy/glibc-start/*; do
    if cmp -s "$work/sorted" "$known"; then exit 0; fi
done
exit 1
