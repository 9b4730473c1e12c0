#!/bin/sh
# make_root.sh FOLDER: a Debian with the Swift compiler in a folder (3 GB, 5 minutes, as root), for EDGEKD_SWIFT_ROOT.
# Debian 13 (trixie) is the first with the package swiftlang. It comes from the mirror that this machine's apt uses.
set -e
root=$1
[ -n "$root" ] || { echo "usage: make_root.sh FOLDER" >&2; exit 2; }
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep '/debian/\?$' | sort -u | head -1)
[ -n "$mirror" ] || { echo "make_root.sh: apt has no Debian mirror here" >&2; exit 1; }
debootstrap --variant=minbase --include=ca-certificates trixie "$root" "$mirror"
apt-config dump | grep -i '^Acquire.*proxy' > "$root/etc/apt/apt.conf.d/99host" || true
cp /etc/resolv.conf "$root/etc/resolv.conf"
mount -t proc proc "$root/proc" # the compiler finds its libraries by /proc/self/exe; again after each start of the machine
DEBIAN_FRONTEND=noninteractive chroot "$root" sh -c "apt-get update && apt-get install -y --no-install-recommends \
  swiftlang libc6-dev libstdc++-14-dev git libncurses-dev libcurl4-openssl-dev libxml2-dev && apt-get clean"
chroot "$root" swift --version
