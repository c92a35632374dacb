#!/bin/sh
# Brings to this machine what `make build`, `make lint` or `make test` (`make demo`, `make bench`, `make budget`) needs, and
# says beforehand what that is.
#
# usage: deploy/setup.sh build|lint|test
#
# Something that is there already is left alone: nothing is installed, fetched or printed the second time.
set -eu
cd "$(dirname "$0")/.."

# package            what shows that it is there already
for_build='
gcc                  command:cc
libc6-dev            file:/usr/include/stdio.h
pkg-config           command:pkg-config
libmnl-dev           library:libmnl
libnftnl-dev         library:libnftnl
'
for_lint='
shellcheck           command:shellcheck
'
# The tests drive real main plugins, read state back with the administrator's own tools, and measure throughput.
for_test='
nftables             command:nft
iptables             command:iptables
iproute2             command:tc
iputils-ping         command:ping
util-linux           command:unshare
procps               command:sysctl
conntrack            command:conntrack
iperf3               command:iperf3
strace               command:strace
valgrind             command:valgrind
containernetworking-plugins  main-plugin:bridge
podman               command:podman
crun                 command:crun
busybox-static       command:busybox
dbus                 command:dbus-daemon
firewalld            command:firewalld
ufw                  command:ufw
containerd           command:containerd
docker.io            command:dockerd
'

# package            what it would start at once
daemons='
firewalld            firewalld.service
containerd           containerd.service
docker.io            docker.service
docker.io            docker.socket
'

say() { echo "setup: $*" >&2; }
die() {
    say "$@"
    exit 1
}

is_there() {
    case $1 in
    command:*) command -v "${1#command:}" >/dev/null 2>&1 ;;
    file:*) [ -e "${1#file:}" ] ;;
    main-plugin:*) [ -x "/usr/lib/cni/${1#main-plugin:}" ] || [ -x "/opt/cni/bin/${1#main-plugin:}" ] ;;
    library:*) command -v pkg-config >/dev/null 2>&1 && pkg-config --exists "${1#library:}" ;;
    esac
}

missing_of() {
    echo "$1" | while read -r package proof; do
        [ -z "$package" ] || is_there "$proof" || printf ' %s' "$package"
    done
}

update_lists() { apt-get -qq update || say "apt-get update failed; going on with the package lists that are here"; }

# Debian's packages start their daemons at once: a firewall that nobody asked for would cut this machine off, and dockerd
# would change its rules. The tests start their own, in namespaces: the machine's stay masked until somebody says
# `systemctl unmask`.
keep_daemons_asleep() {
    echo "$daemons" | while read -r package unit; do
        mask="/etc/systemd/system/$unit"
        case "$1 " in
        *" $package "*) ;;
        *) continue ;;
        esac
        if [ -z "$package" ] || [ -e "$mask" ] || [ -L "$mask" ]; then continue; fi
        say "$unit stays masked: the tests start one of their own"
        mkdir -p "${mask%/*}"
        ln -s /dev/null "$mask"
    done
}

install_packages() {
    missing=$(missing_of "$1")
    [ -n "$missing" ] || return 0
    if ! command -v apt-get >/dev/null 2>&1; then
        die "missing here (names of Debian's packages):$missing. Install them by this system's own means, then try again."
    fi
    if [ "$(id -u)" != 0 ]; then
        die "missing here:$missing. Install them with: sudo apt-get install --no-install-recommends$missing"
    fi
    say "about to install by apt:$missing"
    keep_daemons_asleep "$missing"
    export DEBIAN_FRONTEND=noninteractive
    update_lists
    # shellcheck disable=SC2086 # a list of package names
    apt-get -qq -o DPkg::Lock::Timeout=120 -o Dpkg::Use-Pty=0 install -y --no-install-recommends $missing >&2
    missing=$(missing_of "$1")
    [ -z "$missing" ] || die "still missing after installing:$missing"
}

require_rust() {
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
    how="rustup brings it: https://rustup.rs, or on Debian 13 and Ubuntu 24.04 \`apt-get install rustup && rustup default stable\`."
    command -v cargo >/dev/null 2>&1 || die "Rust $wanted or newer is needed and there is no cargo in PATH; $how"
    have=$(rustc -V | cut -d' ' -f2)
    [ -n "$have" ] || die "Rust $wanted or newer is needed and rustc does not run; $how"
    oldest=$(printf '%s\n%s\n' "$wanted" "$have" | sort -V | head -n 1)
    [ "$oldest" = "$wanted" ] || die "Rust $wanted or newer is needed, this is $have; $how"
}

# The archive this machine's own apt configuration takes Debian from: mirror, proxy and credentials stay the machine's.
debian_archive() {
    # shellcheck disable=SC2016 # apt's own placeholders
    apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Label: Debian' | head -n 1
}

# Debian ships libmnl.a since 13 (libmnl-dev 1.0.5-1; bug 1010616). Debian 12 has headers and the shared library only,
# so the archive is taken out of Debian 13's package: apt checks the signature, and all it keeps lies in a temporary
# directory, so that the system's own package lists and installed packages stay as they are.
fetch_libmnl_a() {
    into=build/native
    keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    [ -f "$keyring" ] || return 1
    uri=$(debian_archive)
    if [ -z "$uri" ] && [ "$(id -u)" = 0 ]; then
        say "about to run apt-get update: without package lists apt doesn't tell its archive"
        update_lists
        uri=$(debian_archive)
    fi
    [ -n "$uri" ] || return 1
    say "about to fetch libmnl.a (this system's libmnl-dev has none) from Debian 13's libmnl-dev into $into/"
    tmp=$(mktemp -d)
    trap 'rm -rf "$tmp"' EXIT
    mkdir -p "$tmp/lists/partial" "$tmp/cache/archives/partial" "$into"
    printf 'Types: deb\nURIs: %s\nSuites: trixie\nComponents: main\nTargets: Packages\nSigned-By: %s\n' \
        "$uri" "$keyring" >"$tmp/trixie.sources"
    private_apt() {
        apt-get -qq -o Dir::Etc::SourceList="$tmp/trixie.sources" -o Dir::Etc::SourceParts=/dev/null \
            -o Dir::State::Lists="$tmp/lists" -o Dir::Cache="$tmp/cache" \
            -o APT::Sandbox::User="$(id -un)" -o Acquire::Languages=none "$@"
    }
    private_apt update >&2 || return 1
    (cd "$tmp" && private_apt download libmnl-dev/trixie >&2 && dpkg-deb -x libmnl-dev_*.deb unpacked) || return 1
    (cd "$tmp" && echo libmnl-dev_*.deb) | cut -d_ -f2 >"$into/libmnl.version"
    cp "$tmp"/unpacked/usr/lib/*/libmnl.a "$into/.libmnl.a.new" && mv -f "$into/.libmnl.a.new" "$into/libmnl.a"
}

# Without it the build still works, only not statically: deploy/build.sh says so.
ensure_libmnl_a() {
    [ -z "${LIBMNL_LIB_DIR:-}" ] || return 0
    for dir in build/native "$(pkg-config --variable=libdir libmnl)"; do
        [ ! -f "$dir/libmnl.a" ] || return 0
    done
    command -v apt-get >/dev/null 2>&1 || return 0
    fetch_libmnl_a || say "libmnl.a could not be fetched"
}

case ${1:-} in
build) packages=$for_build ;;
lint) packages=$for_build$for_lint ;;
test) packages=$for_build$for_test ;;
*) die "usage: deploy/setup.sh build|lint|test" ;;
esac
require_rust
install_packages "$packages"
ensure_libmnl_a
