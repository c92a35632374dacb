#!/bin/sh
# Packs what is distributed into dist/: one archive of executables, one of the sources they were built from, checksums.
#
# usage: deploy/dist.sh (by `make dist`, which builds bin/ and build/THIRD-PARTY.txt first)
#
# The same commit, toolchain and libraries give the same bytes: names are sorted, owners and times are fixed.
set -eu
cd "$(dirname "$0")/.."

version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
case $(rustc -vV | sed -n 's/^host: //p') in
x86_64-*) arch=amd64 ;;
aarch64-*) arch=arm64 ;;
*) arch=$(uname -m) ;;
esac
epoch=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
name=cni-chain-$version-linux-$arch
source=cni-chain-$version-source

pack() {
    tar --create --directory dist --sort=name --format=gnu --mtime="@$epoch" --owner=0 --group=0 --numeric-owner \
        --mode=u+w,go-w,a+rX "$1" | gzip -9 --no-name >"dist/.$1.new"
    mv -f "dist/.$1.new" "dist/$1.tar.gz"
}

rm -rf "dist/$name" "dist/$source"
mkdir -p "dist/$name" "dist/$source"

for program in portmap bandwidth firewall tuning cni-chain; do cp "bin/$program" "dist/$name/"; done
cp deploy/install.sh deploy/Containerfile deploy/daemonset.yaml build/THIRD-PARTY.txt "dist/$name/"
cp LICENSE-MIT LICENSE-APACHE deploy/licenses/*.txt docs/licensing.md README.md CHANGELOG.md "dist/$name/"
cp -R conflists "dist/$name/"
(cd "dist/$name" && find . -type f | LC_ALL=C sort | xargs sha256sum) >dist/.sums
mv dist/.sums "dist/$name/SHA256SUMS"
pack "$name"

# The executables contain GPL software: whoever gets them must be able to get these as well.
git archive HEAD | tar --extract --directory "dist/$source"
pack "$source"
rm -rf "dist/$source"

(cd dist && sha256sum "$name.tar.gz" "$source.tar.gz" >SHA256SUMS && cat SHA256SUMS)
