# make-pool.sh SECTORS
# On zeroed disks the kernel makes a pool of blocks of 128 sectors: ext4 with files on thin 0, its
# snapshot 1, the snapshot's snapshot 2, changes to all in between, one fstrim. Prints the lines of
# read-pool.sh.
set -e
size=$1
# numbers DIR FIRST LAST STEP: a file of numbers for each of FIRST, FIRST + 1000 and so on
numbers() {
	local n
	for n in $(seq "$2" 1000 "$3"); do seq "$n" "$4" $((n + 90000)) >"$1/$n"; done
}
pool_create 128 32
pool_message create_thin 0
thin_activate thin0 0 "$size"
mkfs.ext4 -q -F /dev/mapper/thin0 >&2
mkdir /0 /1 /2
mount -t ext4 /dev/mapper/thin0 /0
numbers /0 1 12001 7
seq 1 1000000 >/0/big
sync
create_snap 1 0 thin0
thin_activate thin1 1 "$size"
mount -t ext4 /dev/mapper/thin1 /1
numbers /0 20000 24000 11
numbers /1 30000 33000 13
seq 5 5 200000 >/1/2001
sync
create_snap 2 1 thin1
pool_message set_transaction_id 0 3
thin_activate thin2 2 "$size"
mount -t ext4 /dev/mapper/thin2 /2
rm /1/big /2/3001
numbers /2 40000 41000 17
sync
fstrim /1
umount /0 /1 /2
for id in 0 1 2; do
	e2fsck -fn /dev/mapper/thin$id >/dev/null 2>&1
	thin_line thin$id $id "$size"
done
echo "status pool: $(dmsetup status pool)"
dmsetup remove thin2 thin1 thin0 pool
check_metadata
kmsg
