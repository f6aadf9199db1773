#!/bin/sh
# A hundred VMs from one golden image: each has a disk of its own, and all take the space of one.
# Needs no root. Works in a folder of its own, and takes everything away.
#   sh golden-image.sh [NUMBER]     default: 100
set -eu
PATH=$PATH:/usr/sbin:/sbin
number=${1:-100}
folder=$(mktemp -d)
cd "$folder"
end() {
  cd "$folder"
  thinfs umount pool 2>/dev/null || true
  rm -rf "$folder"
}
trap end EXIT
trap 'exit 1' INT TERM

thinfs init pool --data-size 10G --volume golden=4G
mkdir volumes system
thinfs mount pool volumes
# The image: here a filesystem with 40 MiB of files. A real one comes by
# `qemu-img convert -O raw IMAGE volumes/golden`.
mkdir system/etc system/usr
head -c 40M /dev/urandom > system/usr/library
echo golden > system/etc/hostname
mkfs.ext4 -q -d system volumes/golden

# What pool.yaml names is made when the pool is mounted; for a single VM, while it is, there is
# `thinfs snapshot pool golden NAME`.
vms=$(seq -f 'vm-%03g' "$number")
for vm in $vms; do echo "  $vm: { snapshot_of: golden }"; done >> pool/pool.yaml
thinfs umount pool
thinfs mount pool volumes

# What a VM changes when it starts: its name. It would be QEMU that writes here.
for vm in $vms; do
  echo "$vm" > hostname
  printf 'rm /etc/hostname\nwrite hostname /etc/hostname\n' |
    debugfs -w -f - "volumes/$vm" > debugfs.log 2>&1
done

for vm in golden $(echo "$vms" | tail -1); do
  echo "$vm is named $(debugfs -R 'cat /etc/hostname' "volumes/$vm" 2>/dev/null)"
done
disks=$(ls volumes | wc -l)
echo "$disks disks of 4G with 40M of files each, in $(du -m pool/data | cut -f 1) MiB"
thinfs status pool
