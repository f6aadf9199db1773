#!/bin/sh
# The main job: a pool, a volume as a disk, a filesystem on it, a snapshot, and space that comes
# back. Needs root, for loop devices; without it see rootless.sh. Works in a folder of its own, and
# takes everything away.
set -eu
folder=$(mktemp -d)
cd "$folder"
end() {
  cd "$folder"
  umount web before 2>/dev/null || true
  thinfs detach pool web 2>/dev/null || true
  thinfs detach pool web-before 2>/dev/null || true
  thinfs umount pool 2>/dev/null || true
  rm -rf "$folder"
}
trap end EXIT
trap 'exit 1' INT TERM

# Two sparse files, and pool.yaml that says so. Mounted, every volume is a file.
thinfs init pool --data-size 1G
mkdir volumes web before
thinfs mount pool volumes
# A volume may be larger than the pool: it takes the space of what is written to it.
thinfs create pool web --size 10G
disk=$(thinfs attach pool web)
mkfs.ext4 -q "$disk"
mount "$disk" web
echo 'version one' > web/page

# A snapshot is there at once. It takes space for what changes on either side.
thinfs snapshot pool web web-before --freeze web
echo 'version two' > web/page
disk_before=$(thinfs attach pool web-before)
mount "$disk_before" before
echo "before: $(cat before/page), now: $(cat web/page)"

# What the filesystem does not need any more goes back to the pool, and to the host.
head -c 20M /dev/urandom > web/upload
sync -f web
thinfs list pool
rm web/upload
sync -f web
fstrim web
thinfs list pool

umount web before
thinfs detach pool web
thinfs detach pool web-before
# When this returns all is committed, and what is free are holes.
thinfs umount pool
du -h pool/data
thin_check -q pool/metadata && echo "the metadata is the kernel's"
