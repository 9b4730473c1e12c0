#!/bin/bash
# An emulated aarch64 Linux board on this machine: a real adbd and a real sshd over an arm64 userland run by qemu-user.
#
#   arm_board.sh fetch DIR [PACKAGE..]   make DIR/root: Debian packages, and wheels of PACKAGE (pip names) for aarch64
#   arm_board.sh run DIR                 switch it on; prints "ready ADDRESS"; off again when stdin ends
#
# run takes a line per command on stdin and answers "done COMMAND": kill-adbd, start-adbd, kill-sshd, start-sshd,
# fill (leave 1 MB of the space in /data/local/tmp and /root), empty.
#
# adbd listens on ADDRESS:5555 as root and asks nobody, sshd on ADDRESS:2222 with the key DIR/ssh/user and the host key in
# DIR/ssh/known_hosts. Both live in network, mount and process namespaces of their own that end with this script, and
# with them every mount, process and interface: nothing stays behind. Only the host can reach ADDRESS, over a veth pair.
#
# Needs root, ip, unshare, dpkg, sshd, and apt with Debian's keyring. apt works on lists of its own here, so the host's
# packages are not touched. The times of such a board mean nothing; its numbers are an ARM processor's.
set -euo pipefail

MODE=${1:?fetch or run}
BASE=$(realpath -m "${2:?folder}")
ROOT=$BASE/root
SUBNET=${EDGEKD_BOARD_SUBNET:-10.77.7}  # .1 is the host, .2 the board

apt_of() { # SUITE ARCH COMMAND..: apt-get with lists of another suite and architecture
  local suite=$1 arch=$2 lists mirror
  shift 2
  lists=$BASE/apt/$suite-$arch
  mkdir -p "$lists/lists/partial"
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep '/debian/$' | sort -u | head -1)
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" > "$lists/sources.list"
  apt-get -o APT::Architecture="$arch" -o APT::Architectures="$arch" -o Dir::Etc::SourceList="$lists/sources.list" \
    -o Dir::Etc::SourceParts=/dev/null -o Dir::State::Lists="$lists/lists" -o Dir::State::status=/dev/null \
    -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= -o APT::Sandbox::User=root -qq "$@"
}

unpack() { # SUITE ARCH TARGET PACKAGE..
  local suite=$1 arch=$2 target=$3 folder
  shift 3
  folder=$BASE/debs/$suite-$arch
  mkdir -p "$folder" "$target"
  (cd "$folder" && apt_of "$suite" "$arch" update && apt_of "$suite" "$arch" download "$@")
  for deb in "$folder"/*.deb; do dpkg -x "$deb" "$target"; done
}

fetch() {
  # bookworm: the userland; Python as on a small board
  unpack bookworm arm64 "$ROOT.new" bash coreutils base-files grep sed findutils util-linux libc6 libgcc-s1 libstdc++6 \
    libselinux1 libpcre2-8-0 libacl1 libattr1 libgmp10 libtinfo6 libcap-ng0 libblkid1 libmount1 libsmartcols1 libudev1 \
    libsystemd0 libgomp1 zlib1g libexpat1 libffi8 libssl3 libbz2-1.0 liblzma5 libuuid1 libcrypt1 \
    python3.11-minimal libpython3.11-minimal libpython3.11-stdlib
  # trixie: bookworm has no adbd, and its qemu crashes in newer runtimes
  unpack trixie amd64 "$BASE/host" adbd android-libbase android-libboringssl android-libcutils android-liblog libbrotli1 \
    libc6 libgcc-s1 liblz4-1 libprotobuf32t64 libstdc++6 libsystemd0 libzstd1 libcap2 zlib1g libfmt10 libxxhash0 qemu-user
  mkdir -p "$ROOT.new"/{proc,sys,dev,root,tmp,data/local/tmp,opt/adbd/lib,opt/site,system/bin,etc}
  cp -L "$BASE"/host/usr/lib/x86_64-linux-gnu/*.so* "$BASE"/host/usr/lib/x86_64-linux-gnu/android/*.so* "$ROOT.new/opt/adbd/lib/"
  cp -L "$BASE/host/usr/lib64/ld-linux-x86-64.so.2" "$BASE/host/usr/lib/android-sdk/platform-tools/adbd" "$ROOT.new/opt/adbd/"
  [ -e "$ROOT.new/bin/sh" ] || ln -s bash "$ROOT.new/bin/sh"
  echo 'root:x:0:0:root:/root:/bin/bash' > "$ROOT.new/etc/passwd"
  cat > "$ROOT.new/system/bin/getprop" <<'SH'
#!/bin/sh
case "$1" in
  ro.product.model) echo edgekd-emulated ;;
  ro.product.cpu.abi) echo arm64-v8a ;;
  ro.build.version.sdk) echo 34 ;;
  *) echo ;;
esac
SH
  chmod +x "$ROOT.new/system/bin/getprop"
  if [ $# -gt 0 ]; then
    mkdir -p "$BASE/wheels"
    # each tag is named: pip takes an older version rather than a tag that was not
    ${PYTHON:-python3} -m pip download --quiet --disable-pip-version-check --no-deps --dest "$BASE/wheels" \
      --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux_2_17_aarch64 \
      --platform manylinux2014_aarch64 --python-version 3.11 --implementation cp --abi cp311 --only-binary=:all: "$@"
    for wheel in "$BASE"/wheels/*.whl; do ${PYTHON:-python3} -m zipfile -e "$wheel" "$ROOT.new/opt/site"; done
  fi
  mkdir -p "$BASE/ssh"
  for name in host user; do
    [ -f "$BASE/ssh/$name" ] || ssh-keygen -q -t ed25519 -N '' -C "$name" -f "$BASE/ssh/$name"
  done
  rm -rf "$BASE/debs" "$BASE/wheels" "$BASE/apt"
  rm -rf "$ROOT"
  mv "$ROOT.new" "$ROOT"
}

# The board's own process 1, in its namespaces.
inside() {
  local environment=(QEMU_CPU=cortex-a76 PYTHONPATH=/opt/site OPENBLAS_NUM_THREADS=1 HOME=/root
    PATH=/system/bin:/usr/bin:/bin)
  exec 9>&-
  ip link set lo up
  until ip link show board > /dev/null 2>&1; do sleep 0.05; done
  ip addr add "$SUBNET.2/24" dev board
  ip link set board up
  mount --make-rprivate /
  mount -t tmpfs -o mode=755 tmpfs /run
  mount -t tmpfs -o mode=755 tmpfs /srv  # sshd wants a root that only root can write to, all the way up
  mkdir -p /run/sshd /srv/board
  mount --rbind "$ROOT" /srv/board
  mount -t proc proc /srv/board/proc
  mount --rbind /sys /srv/board/sys  # without its processors, runtimes find none
  mount -t tmpfs -o mode=755 tmpfs /srv/board/dev
  mkdir /srv/board/dev/pts /srv/board/dev/shm
  mount -t devpts -o newinstance,ptmxmode=0666 devpts /srv/board/dev/pts
  ln -s pts/ptmx /srv/board/dev/ptmx
  mknod -m 666 /srv/board/dev/null c 1 3
  mknod -m 666 /srv/board/dev/zero c 1 5
  mknod -m 666 /srv/board/dev/urandom c 1 9
  for place in tmp root data/local/tmp; do mount -t tmpfs -o "mode=755,size=${EDGEKD_BOARD_SPACE:-256m}" tmpfs "/srv/board/$place"; done
  mount -t proc proc /proc

  local ssh=$BASE/ssh
  cp "$ssh/host" "$ssh/user.pub" /run/sshd/
  chmod 600 /run/sshd/host
  cat > /run/sshd/config <<END
Port 2222
ListenAddress $SUBNET.2
HostKey /run/sshd/host
PidFile /run/sshd/pid
AuthorizedKeysFile /run/sshd/user.pub
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
UsePAM no
Subsystem sftp internal-sftp
ChrootDirectory /srv/board
SetEnv QEMU_CPU=cortex-a76 PYTHONPATH=/opt/site OPENBLAS_NUM_THREADS=1
END
  start_adbd() {
    env -i "${environment[@]}" /usr/sbin/chroot /srv/board /opt/adbd/ld-linux-x86-64.so.2 --library-path /opt/adbd/lib \
      /opt/adbd/adbd > "$BASE/adbd.log" 2>&1 < /dev/null &
    ADBD=$!
    until ss -ltn | grep -q ':5555 '; do sleep 0.05; done
  }
  start_sshd() {
    /usr/sbin/sshd -f /run/sshd/config -E "$BASE/sshd.log"
    until ss -ltn | grep -q ':2222 '; do sleep 0.05; done
  }
  start_adbd
  start_sshd
  echo "ready $SUBNET.2"
  while read -r command; do
    case $command in
      kill-adbd) kill -9 "$ADBD"; wait "$ADBD" 2> /dev/null || true ;;
      start-adbd) start_adbd ;;
      kill-sshd) pkill -9 sshd || true ;; # this namespace's only
      start-sshd) start_sshd ;;
      fill) for place in data/local/tmp root; do
        free=$(df --output=avail -k "/srv/board/$place" | tail -1)
        head -c "$(((free - 1024) * 1024))" /dev/zero > "/srv/board/$place/filled"
      done ;;
      empty) for place in data/local/tmp root; do rm -f "/srv/board/$place/filled"; done ;;
      *) echo "unknown $command"; continue ;;
    esac
    echo "done $command"
  done
}

run() {
  local magic mask
  name=edgekd-$$ binfmt=/proc/sys/fs/binfmt_misc mounted="" child="" # for off, which runs when this function has ended
  [ -d "$ROOT" ] || { echo "no board in $BASE: fetch it first" >&2; exit 1; }
  exec 9> "$BASE/lock"
  flock --nonblock 9 || { echo "the board in $BASE is already on" >&2; exit 1; }
  echo "[$SUBNET.2]:2222 $(cut -d' ' -f1,2 "$BASE/ssh/host.pub")" > "$BASE/ssh/known_hosts"
  mountpoint -q $binfmt || { mount -t binfmt_misc binfmt_misc $binfmt; mounted=1; }
  magic='\x7f\x45\x4c\x46\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
  mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
  off() {
    set +e
    [ -z "$child" ] || { kill -9 "$child" 2> /dev/null; wait "$child" 2> /dev/null; }
    [ ! -e "$binfmt/$name" ] || echo -1 > "$binfmt/$name"
    [ -z "$mounted" ] || umount $binfmt 2> /dev/null
    ip link del "${name/-/}" 2> /dev/null
    true # each of them may be gone already
  }
  trap off EXIT
  trap 'exit 1' INT TERM HUP
  echo ":$name:M::$magic:$mask:$BASE/host/usr/bin/qemu-aarch64:F" > "$binfmt/register"
  exec 8<&0
  unshare --net --mount --pid --fork --kill-child "$0" inside "$BASE" <&8 &
  child=$!
  # the process behind unshare, once it is in its namespaces
  until [ -e "/proc/$child/ns/net" ] && [ "$(readlink "/proc/$child/ns/net")" != "$(readlink /proc/self/ns/net)" ]; do
    kill -0 "$child" || exit 1
    sleep 0.05
  done
  ip link add "${name/-/}" type veth peer name board netns "$child"
  ip addr add "$SUBNET.1/24" dev "${name/-/}"
  ip link set "${name/-/}" up
  wait "$child"
}

shift 2
case $MODE in
  fetch) fetch "$@" ;;
  run) run ;;
  inside) inside ;;
  *) echo "fetch or run, not $MODE" >&2; exit 2 ;;
esac
