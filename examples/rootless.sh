#!/bin/sh
# The main job without root: ext4 on a volume by fuse2fs, a snapshot, space that comes back, a
# backup to another pool, copies in and out, and the volume as a network disk. Needs e2fsprogs,
# fuse2fs, qemu-utils, and nbdkit for the last part. Where fusermount3 is missing: unshare -Urm sh
# rootless.sh Works in a folder of its own, and takes everything away.
set -eu
PATH=$PATH:/usr/sbin:/sbin
folder=$(mktemp -d)
cd "$folder"
server=
end() {
  cd "$folder"
  unmount || true
  [ -z "$server" ] || kill "$server" 2>/dev/null || true
  thinfs umount pool 2>/dev/null || true
  thinfs umount backup 2>/dev/null || true
  rm -rf "$folder"
}
trap end EXIT
trap 'exit 1' INT TERM

# fakeroot: files in there may belong to root. In the foreground, so that its end can be waited for:
# it writes after it was unmounted.
mount_web() {
  fuse2fs -f -o fakeroot volumes/web web > fuse2fs.log 2>&1 &
  server=$!
  until mountpoint -q web; do kill -0 "$server"; sleep 0.1; done
}
# umount(8) is for root of a namespace without fusermount3.
unmount() {
  mountpoint -q web || return 0
  fusermount3 -u web 2>/dev/null || umount web
  wait "$server"
  server=
}
used() {
  sync volumes/web
  du -m volumes/web | cut -f 1
}

thinfs init pool --data-size 1G
mkdir volumes web
thinfs mount pool volumes
thinfs create pool web --size 256M

# On the file itself, for loop devices are root's.
mkfs.ext4 -q volumes/web
mount_web
echo 'version one' > web/page
head -c 32M /dev/urandom > web/upload
unmount
thinfs snapshot pool web web-before

mount_web
echo 'version two' > web/page
rm web/upload
unmount
echo "before: $(debugfs -R 'cat /page' volumes/web-before 2>/dev/null)"
echo "now: $(debugfs -R 'cat /page' volumes/web 2>/dev/null)"

# fuse2fs has no fstrim. e2fsck discards what is free, when it has found nothing to mend.
full=$(used)
e2fsck -fp volumes/web > /dev/null || [ $? = 1 ]
e2fsck -fy -E discard volumes/web > /dev/null 2>&1
echo "$full MiB before the discard, $(used) after"

# A copy in another pool, and what has changed since, as by ssh to another machine.
thinfs init backup --data-size 1G
thinfs snapshot pool web web-monday
thinfs send pool web-monday | thinfs receive backup web-monday
mount_web
echo 'version three' > web/page
unmount
thinfs snapshot pool web web-tuesday
thinfs send pool web-tuesday --from web-monday | thinfs receive backup web-tuesday
mkdir backups
thinfs mount backup backups
cmp volumes/web-tuesday backups/web-tuesday && echo "the copy is the same"
thinfs umount backup

# Out, and in again: holes stay holes.
qemu-img convert -f raw -O qcow2 volumes/web-before web.qcow2
qemu-img convert -O raw web.qcow2 volumes/copy
qemu-img compare -f raw -F raw volumes/copy volumes/web-before

# For virtual machines and for other machines: a server on the file. QEMU takes the file, too.
serve() {
  "$@" &
  server=$!
  until [ -S disk.sock ]; do kill -0 "$server"; sleep 0.1; done
}
stop() {
  kill "$server"
  wait "$server" || true
  server=
  rm -f disk.sock
}
uri="nbd+unix:///?socket=$folder/disk.sock"
serve qemu-nbd --persistent --format=raw --discard=unmap --socket="$folder/disk.sock" volumes/copy
qemu-io -f raw -c 'write -P 7 1M 64k' -c 'discard 1M 64k' -c 'read -P 0 1M 64k' -c flush "$uri" |
  grep -c '^wrote\|^discard\|^read'
stop
if command -v nbdkit > /dev/null; then
  serve nbdkit -f -U "$folder/disk.sock" file volumes/web
  qemu-img info "$uri" | grep '^virtual size'
  stop
fi

thinfs list pool
thinfs umount pool
thin_check -q pool/metadata && echo "the metadata is the kernel's"
