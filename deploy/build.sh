#!/bin/sh
# Builds the five executables, static where this machine can link statically, and puts them into bin/.
#
# usage: deploy/build.sh (deploy/setup.sh build has been run)
set -eu
cd "$(dirname "$0")/.."

plugins='portmap bandwidth firewall tuning'
plugin_limit=4194304

say() { echo "build: $*" >&2; }
die() {
    say "$@"
    exit 1
}

host=$(rustc -vV | sed -n 's/^host: //p')
target_dir=${CARGO_TARGET_DIR:-target}
if [ -z "${LIBMNL_LIB_DIR:-}" ] && [ -f build/native/libmnl.a ]; then
    export LIBMNL_LIB_DIR="$PWD/build/native"
fi

# Prints why a static executable can't be linked here; nothing if it can.
static_obstacle() {
    case $host in
    *-linux-gnu) ;;
    *) echo "the Rust toolchain is for $host, and only *-linux-gnu has been tried" && return ;;
    esac
    probe=$(mktemp -d)
    echo 'int main(void) { return 0; }' >"$probe/main.c"
    cc -static "$probe/main.c" -o "$probe/main" ${LIBMNL_LIB_DIR:+"-L$LIBMNL_LIB_DIR"} \
        -Wl,--whole-archive -lnftnl -lmnl -Wl,--no-whole-archive >"$probe/log" 2>&1 ||
        sed -n '1{s/^[^ ]*ld: //;p;}' "$probe/log"
    rm -rf "$probe"
}

# What is read only and what is executed go into one segment, if the linker knows how: the kernel then maps an executable
# in fewer pieces, and its first 2 MiB in one where it keeps them so (5 to 7 % of a plugin's ADD, as measured on ext4).
one_segment=-Clink-arg=-Wl,--no-rosegment

knows_one_segment() {
    probe=$(mktemp -d)
    known=1
    echo 'fn main() {}' | rustc "$one_segment" -o "$probe/main" - 2>"$probe/log" && known=0
    rm -rf "$probe"
    return "$known"
}

# Prints the libc.a that a static Rust program takes its start from here: the linker knows.
linked_libc() {
    probe=$(mktemp -d)
    # shellcheck disable=SC2086 # RUSTFLAGS is a list of words
    echo 'fn main() {}' | rustc ${RUSTFLAGS:-} --target "$host" -C target-feature=+crt-static -C relocation-model=static \
        ${LIBMNL_LIB_DIR:+"-Lnative=$LIBMNL_LIB_DIR"} \
        ${CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_LINKER:+"-Clinker=$CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_LINKER"} \
        "-Clink-arg=-Wl,-Map=$probe/map" -o "$probe/main" - 2>"$probe/log" &&
        sed -n '/libc\.a(libc-start\.o)/{s/^[^/]*//;s/libc\.a(.*/libc.a/;p;q;}' "$probe/map"
    rm -rf "$probe"
}

# Flags are handed over separated by 0x1f, because a path in them may hold a space.
#
# sha2 would ask the processor for its abilities (CPUID), which a virtual machine has to leave for: that takes ten times
# as long as hashing a name. Rounds in a loop are a tenth of the code of unrolled ones, which a call would fetch from memory
# for one or two blocks.
flags() {
    printf '%s\037' --cfg 'sha2_backend="soft"' --cfg 'sha2_backend_soft="compact"'
    printf '%s\037' "--remap-path-prefix=$PWD=." "--remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=cargo"
    for flag in ${RUSTFLAGS:-}; do printf '%s\037' "$flag"; done
    if knows_one_segment; then printf '%s\037' "$one_segment"; fi
    if [ -z "$1" ]; then
        if [ -n "$own_start" ]; then printf '%s\037' --cfg own_start; fi
        printf '%s\037%s\037%s\037%s' -C target-feature=+crt-static -C relocation-model=static
    else
        printf '%s\037%s' -C target-feature=-crt-static
    fi
}

check() {
    program=$1
    file=$target_dir/$host/release/$program
    if [ -z "$obstacle" ]; then
        LC_ALL=C ldd "$file" 2>&1 | grep -q 'not a dynamic executable' || die "$program was to be static and is not"
    fi
    case " $plugins " in *" $program "*) ;; *) return 0 ;; esac
    # A dynamic one may have to be told where its libraries are.
    [ -n "$obstacle" ] || CNI_COMMAND=VERSION "$file" </dev/null >/dev/null 2>&1 || die "$program can't be started"
    [ "$(wc -c <"$file")" -lt "$plugin_limit" ] || die "$program is larger than $plugin_limit bytes"
}

obstacle=$(static_obstacle)
# Not for a program that is position-independent, or that a dynamic linker starts.
own_start=
if [ -z "$obstacle" ] && [ "$host" = x86_64-unknown-linux-gnu ] && sh deploy/knows-start.sh "$(linked_libc)"; then
    own_start=1
fi
if [ -n "$obstacle" ]; then
    say "a static build is impossible here, so the executables will be dynamic: $obstacle"
elif [ -z "$own_start" ] && [ "$host" = x86_64-unknown-linux-gnu ]; then
    say "this C library's start isn't known here, so the plugins leave theirs to it (in a virtual machine 0.2 ms a call)"
fi

# The target is named although it is the host's own: otherwise the flags would reach build scripts and procedural
# macros too, which can't be static.
packages=
for program in $plugins cni-chain; do packages="$packages -p $program"; done
# shellcheck disable=SC2086 # lists of words
CARGO_ENCODED_RUSTFLAGS=$(flags "$obstacle") cargo build --release --target "$host" ${CARGO_FLAGS:-} --bins $packages

for program in $plugins cni-chain; do check "$program"; done
# shellcheck disable=SC2086
sh deploy/install.sh "$target_dir/$host/release" bin $plugins cni-chain
