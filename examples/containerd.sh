#!/bin/sh
# containerd's devmapper snapshotter on a kernel without device-mapper.
# Needs root, and `thinfs dm` running. Works in a folder of its own, and takes everything away.
#   sh containerd.sh IMAGE.tar REFERENCE     as docker.io/library/busybox:latest
# IMAGE.tar is an image as `docker save REFERENCE > IMAGE.tar` writes it: no registry is needed.
set -eu
image=$(realpath "$1")
folder=$(mktemp -d)
cd "$folder"
pool=thinfs-example-$$
ctr="ctr -a $folder/containerd.sock"
end() {
  kill "$(cat containerd.pid)"
  while kill -0 "$(cat containerd.pid)" 2>/dev/null; do sleep 0.1; done
  dmsetup remove --retry "$pool"
  losetup -d "$data" "$metadata"
  cd /
  rm -rf "$folder"
}

# The pool: 20 GiB in blocks of 64 KiB, and an event when 32768 of them are left.
truncate -s 20G data.img
truncate -s 256M metadata.img
data=$(losetup --find --show data.img)
metadata=$(losetup --find --show metadata.img)
dmsetup create "$pool" --table "0 41943040 thin-pool $metadata $data 128 32768 1 skip_block_zeroing"

cat > config.toml <<END
version = 2
root = "$folder/root"
state = "$folder/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "$folder/containerd.sock"
[plugins."io.containerd.snapshotter.v1.devmapper"]
  root_path = "$folder/devmapper"
  pool_name = "$pool"
  base_image_size = "1GB"
  discard_blocks = true
[plugins."io.containerd.internal.v1.opt"]
  path = "$folder/opt"
END
setsid containerd -c config.toml > containerd.log 2>&1 < /dev/null &
echo $! > containerd.pid
trap end EXIT
until $ctr version > /dev/null 2>&1; do sleep 0.1; done

# Every layer is a thin device, and a snapshot of the one below.
$ctr images import --snapshotter devmapper "$image" > /dev/null
$ctr snapshots --snapshotter devmapper ls
$ctr run --rm --snapshotter devmapper "$2" example /bin/echo hello from a thin device
dmsetup status "$pool"
# The container's device goes soon after the container.
while dmsetup ls | grep -q "^$pool-snap"; do sleep 0.1; done
