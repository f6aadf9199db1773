#!/bin/sh
# Docker (20.10 to 24) with its devicemapper driver on a kernel without device-mapper. Docker makes
# the pool by itself, in two sparse files ("loop-lvm"). Needs root, and `thinfs dm` running. Works
# in a folder of its own, and takes everything away.
#   sh docker-loop-lvm.sh IMAGE.tar REFERENCE     as busybox:latest
# IMAGE.tar is an image as `docker save REFERENCE > IMAGE.tar` writes it: no registry is needed.
set -eu
image=$(realpath "$1")
folder=$(mktemp -d)
cd "$folder"
docker="docker -H unix://$folder/docker.sock"
end() {
  kill "$(cat docker.pid)"
  while [ -e docker.pid ]; do sleep 0.1; done
  rm -rf "$folder"
}

# Without a udevd Docker asks to be told that this is known.
setsid dockerd --data-root "$folder/docker" --exec-root "$folder/exec" -p "$folder/docker.pid" \
  -H "unix://$folder/docker.sock" --iptables=false --ip-masq=false --ip-forward=false --bridge=none \
  --storage-driver=devicemapper \
  --storage-opt dm.override_udev_sync_check=true \
  --storage-opt dm.basesize=10G \
  --storage-opt dm.loopdatasize=20G \
  > docker.log 2>&1 < /dev/null &
trap end EXIT
until $docker version > /dev/null 2>&1; do sleep 0.1; done

$docker info 2> /dev/null | grep -E 'Storage Driver|Pool Name|Data Space'
$docker load -q -i "$image"
# A container is a snapshot of its image.
$docker run --rm --network none "$2" /bin/echo hello from a thin device
dmsetup status
