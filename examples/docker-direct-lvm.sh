#!/bin/sh
# Docker (20.10 to 24) on a thin pool of LVM ("direct-lvm"), by the recipe of Docker's
# documentation, on a kernel without device-mapper. Needs root, and `thinfs dm` running. Works in a
# folder of its own, and takes everything away.
#   sh docker-direct-lvm.sh IMAGE.tar REFERENCE     as busybox:latest
# IMAGE.tar is an image as `docker save REFERENCE > IMAGE.tar` writes it: no registry is needed.
set -eu
image=$(realpath "$1")
folder=$(mktemp -d)
cd "$folder"
vg=thinfs_docker_$$
docker="docker -H unix://$folder/docker.sock"
end() {
  kill "$(cat docker.pid)"
  while [ -e docker.pid ]; do sleep 0.1; done
  lvm vgremove -qq -f "$vg"
  losetup -d "$disk"
  rm -rf "$folder"
}

truncate -s 8G disk.img
disk=$(losetup --find --show disk.img)
# LVM looks at this disk alone; leave the option out where it may look at all of them.
lvm() {
  command=$1
  shift
  "$command" --config "devices { filter = [ \"a|^$disk\$|\", \"r|.*|\" ] } activation { monitoring = 0 }" "$@"
}
lvm pvcreate -q "$disk"
lvm vgcreate -q "$vg" "$disk"
lvm lvcreate -q --wipesignatures y -n thinpool "$vg" -l 95%VG
lvm lvcreate -q --wipesignatures y -n thinpoolmeta "$vg" -l 1%VG
lvm lvconvert -q -y --zero n -c 512K --thinpool "$vg/thinpool" --poolmetadata "$vg/thinpoolmeta"

# Without a udevd Docker asks to be told that this is known.
setsid dockerd --data-root "$folder/docker" --exec-root "$folder/exec" -p "$folder/docker.pid" \
  -H "unix://$folder/docker.sock" --iptables=false --ip-masq=false --ip-forward=false --bridge=none \
  --storage-driver=devicemapper \
  --storage-opt dm.override_udev_sync_check=true \
  --storage-opt "dm.thinpooldev=/dev/mapper/$vg-thinpool" \
  --storage-opt dm.use_deferred_removal=true \
  --storage-opt dm.use_deferred_deletion=true \
  > docker.log 2>&1 < /dev/null &
trap end EXIT
until $docker version > /dev/null 2>&1; do sleep 0.1; done

$docker info 2> /dev/null | grep -E 'Storage Driver|Pool Name|Data Space'
$docker load -q -i "$image"
# A container is a snapshot of its image.
$docker run --rm --network none "$2" /bin/echo hello from a thin device
lvm lvs "$vg"
