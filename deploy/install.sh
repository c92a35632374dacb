#!/bin/sh
# Copies executables into a directory from which a runtime may start them at any moment.
#
# usage: install.sh FROM TO NAME...
#
# Each is written under a hidden name beside its destination and then renamed: a runtime sees the old file or the new
# one, never half of one, and "text file busy" can't happen. A file that is the same already is left alone.
# POSIX sh and busybox only: this runs in the container image as well.
set -eu

from=$1 to=$2
shift 2

mkdir -p "$to"
for name; do
    cmp -s "$from/$name" "$to/$name" && [ -x "$to/$name" ] && continue
    new=$to/.$name.new.$$
    trap 'rm -f "$new"' EXIT
    cp "$from/$name" "$new"
    chmod 0755 "$new"
    mv -f "$new" "$to/$name"
    echo "$to/$name"
done
