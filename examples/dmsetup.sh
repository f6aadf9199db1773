#!/bin/sh
# dmsetup on a kernel without device-mapper: a pool, a thin device, a snapshot of it, growth.
# Needs root, and `thinfs dm` running. Works in a folder of its own, and takes everything away.
set -eu
folder=$(mktemp -d)
cd "$folder"
end() {
  umount base snap 2>/dev/null || true
  dmsetup remove snap base pool 2>/dev/null || true
  losetup -d "$metadata" "$data"
  rm -rf "$folder"
}
trap end EXIT

# Sparse files: nothing is used yet.
truncate -s 1G data.img
truncate -s 16M metadata.img
data=$(losetup --find --show data.img)
metadata=$(losetup --find --show metadata.img)

# Metadata that is all zero is formatted. Blocks of 128 sectors, 64 KiB.
dmsetup create pool --table "0 2097152 thin-pool $metadata $data 128 1024 1 skip_block_zeroing"
dmsetup message pool 0 "create_thin 0"
dmsetup create base --table "0 1048576 thin /dev/mapper/pool 0"
mkfs.ext4 -q /dev/mapper/base
mkdir base snap
mount /dev/mapper/base base
echo "hello world, I am a base" > base/id.txt

# Suspending freezes the filesystem, so that the snapshot has all of it.
dmsetup suspend base
dmsetup message pool 0 "create_snap 1 0"
dmsetup resume base
dmsetup create snap --table "0 1048576 thin /dev/mapper/pool 1"
mount /dev/mapper/snap snap
echo "I am snap1" >> snap/id.txt
echo "base: $(cat base/id.txt)"
echo "snap: $(tail -1 snap/id.txt)"

# The device grows while it is mounted.
dmsetup load base --table "0 1572864 thin /dev/mapper/pool 0"
dmsetup suspend base
dmsetup resume base
blockdev --getsize64 /dev/mapper/base

dmsetup ls --tree
dmsetup status
umount base snap
dmsetup remove snap base
dmsetup remove pool
thin_check -q metadata.img && echo "the metadata is the kernel's"
