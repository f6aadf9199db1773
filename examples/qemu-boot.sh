#!/bin/sh
# QEMU boots from a volume: a disk image goes into one, and a virtual machine runs on a snapshot of
# it. Needs no root. Works in a folder of its own, and takes everything away.
#   sh qemu-boot.sh IMAGE [OPTION...]
# IMAGE is a bootable disk, qcow2 or raw; options are QEMU's, such as -accel kvm.
set -eu
PATH=$PATH:/usr/sbin:/sbin
image=$(realpath "$1")
shift
folder=$(mktemp -d)
cd "$folder"
end() {
  cd "$folder"
  thinfs umount pool 2>/dev/null || true
  rm -rf "$folder"
}
trap end EXIT
trap 'exit 1' INT TERM

thinfs init pool --data-size 20G
mkdir volumes
thinfs mount pool volumes
qemu-img convert -O raw "$image" volumes/golden
thinfs snapshot pool golden vm

# Whatever the machine writes is the snapshot's; what it trims (discard) goes back to the pool.
qemu-system-x86_64 -m 512 -nographic -no-reboot \
  -drive file=volumes/vm,format=raw,if=virtio,cache=none,discard=unmap "$@" < /dev/null

thinfs list pool
