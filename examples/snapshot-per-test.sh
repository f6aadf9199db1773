#!/bin/sh
# One prepared disk, a snapshot of it for each test: every test finds the same, whatever the others
# did. Needs root; without it fuse2fs mounts the volume's file as well (rootless.sh). Works in a
# folder of its own, and takes everything away.
set -eu
folder=$(mktemp -d)
cd "$folder"
test=base
end() {
  cd "$folder"
  umount fs 2>/dev/null || true
  thinfs detach pool "$test" 2>/dev/null || true
  thinfs umount pool 2>/dev/null || true
  rm -rf "$folder"
}
trap end EXIT
trap 'exit 1' INT TERM

thinfs init pool --data-size 1G --volume base=256M
mkdir volumes fs
thinfs mount pool volumes
disk=$(thinfs attach pool base)
mkfs.ext4 -q "$disk"
mount "$disk" fs
# Here a database would be filled, for minutes, once.
seq 100000 > fs/rows
umount fs
thinfs detach pool base

# $1 is the test's name, the rest its command, which runs in the filesystem.
run() {
  test=$1
  shift
  thinfs snapshot pool base "$test"
  disk=$(thinfs attach pool "$test")
  mount "$disk" fs
  (cd fs && "$@") && echo "$test: passed" || echo "$test: failed"
  umount fs
  thinfs detach pool "$test"
  thinfs remove --yes pool "$test"
}
run deletes sh -c 'rm rows; ! [ -e rows ]'
run appends sh -c 'echo more >> rows; [ "$(tail -1 rows)" = more ]'
run reads-last sh -c '[ "$(tail -1 rows)" = 100000 ]'
thinfs list pool
