#!/bin/sh
# ext4, XFS and btrfs on loop devices: each is made, filled, trimmed and checked by its own tools.
# Needs root. Works in a folder of its own, and takes everything away.
#   sh filesystems.sh [KIND...]     default: ext4 xfs btrfs
set -eu
folder=$(mktemp -d)
cd "$folder"
disk=
end() {
  cd "$folder"
  umount fs 2>/dev/null || true
  [ -z "$disk" ] || losetup --detach "$disk" 2>/dev/null || true
  thinfs umount pool 2>/dev/null || true
  rm -rf "$folder"
}
trap end EXIT
trap 'exit 1' INT TERM

thinfs init pool --data-size 2G
mkdir volumes fs
thinfs mount pool volumes
# What the volume takes, in MiB.
used() {
  sync "volumes/$1"
  echo $(($(stat -c %b "volumes/$1") / 2048))
}
for kind in ${*:-ext4 xfs btrfs}; do
  truncate -s 1G "volumes/$kind"
  # As `thinfs attach` does it. With direct I/O nothing is cached twice.
  disk=$(losetup --find --show --direct-io=on "volumes/$kind")
  "mkfs.$kind" -q "$disk" > mkfs.log 2>&1 || { cat mkfs.log; exit 1; }
  mount "$disk" fs
  empty=$(used "$kind")
  head -c 24M /dev/urandom > fs/file
  sync -f fs
  full=$(used "$kind")
  rm fs/file
  # XFS frees what was removed in the background; unmounting waits for that, and for discards.
  umount fs
  mount "$disk" fs
  fstrim fs
  umount fs
  case $kind in
    ext4) e2fsck -fn "$disk" ;;
    xfs) xfs_repair -n "$disk" ;;
    btrfs) btrfs check --readonly "$disk" ;;
  esac > check.log 2>&1 || { cat check.log; exit 1; }
  losetup --detach "$disk"
  disk=
  echo "$kind: $empty MiB after mkfs, $full with a file of 24, $(used "$kind") without"
done
