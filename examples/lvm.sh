#!/bin/sh
# LVM thin volumes on a kernel without device-mapper.
# Needs root, and `thinfs dm` running. Works in a folder of its own, and takes everything away.
set -eu
folder=$(mktemp -d)
cd "$folder"
vg=thinfs_example_$$
end() {
  umount web old 2>/dev/null || true
  lvm vgremove -qq -f "$vg" 2>/dev/null || true
  losetup -d "$disk"
  rm -rf "$folder"
}
trap end EXIT

truncate -s 1G disk.img
disk=$(losetup --find --show disk.img)
# LVM looks at this disk alone; leave the option out where it may look at all of them.
lvm() {
  command=$1
  shift
  "$command" --config "devices { filter = [ \"a|^$disk\$|\", \"r|.*|\" ] } activation { monitoring = 0 }" "$@"
}
lvm pvcreate -q "$disk"
lvm vgcreate -q "$vg" "$disk"

# 300M of volume in a pool of 200M.
lvm lvcreate -q -L 200M -T "$vg/pool"
lvm lvcreate -q -V 300M -T "$vg/pool" -n web 2>/dev/null
mkfs.ext4 -q "/dev/$vg/web"
mkdir web old
mount "/dev/$vg/web" web
echo first > web/page

# A snapshot is there at once, and takes no space until one of the two changes.
lvm lvcreate -q -s -n web-old "$vg/web"
lvm lvchange -ay -K "$vg/web-old"
echo second > web/page
mount -o ro "/dev/$vg/web-old" old
echo "old: $(cat old/page), now: $(cat web/page)"

# The pool grows while its volumes are in use.
lvm lvextend -q -L +100M "$vg/pool" 2>/dev/null
lvm lvs -a -o lv_name,lv_attr,lv_size,pool_lv,origin,data_percent,metadata_percent "$vg"

# As at the next boot: all devices go, and come again, after thin_check.
umount web old
lvm vgchange -q -an "$vg"
lvm vgchange -q -ay "$vg"
mount "/dev/$vg/web" web
cat web/page
