# exercise-pool.sh ID SECTORS [ID SECTORS]...
# Has the kernel write to an existing pool: it snapshots each device (ids 16000000 and up), breaks
# sharing, provisions, discards, deletes a snapshot. What was snapshotted must read the same at the
# end, and everything must read the same when the pool is opened again. Prints the lines of
# read-pool.sh for the devices and their snapshots as they are at the end.
bad=0
fault() { echo "FAULT $*"; bad=1; }
# letters CHAR NAME SECTOR SECTORS: direct writes of one character
letters() {
	tr '\0' "$1" </dev/zero | dd of=/dev/mapper/$2 bs=512 seek=$3 count=$4 iflag=fullblock oflag=direct conv=notrunc 2>/dev/null ||
		fault "write to $2 at sector $3"
}
block=$(block_size_of $META)
pool_create "$block" 0 error_if_no_space || { kmsg; die "the kernel does not take the pool"; }
lines=
next=16000000
while [ $# -gt 1 ]; do
	id=$1 sectors=$2 snap=$next blocks=$(($2 / block))
	shift 2
	next=$((next + 2))
	thin_activate origin $id $sectors || { fault "thin $id"; continue; }
	before=$(sha_of /dev/mapper/origin)
	create_snap $snap $id origin || fault "create_snap $snap $id"
	thin_activate snap $snap $sectors || fault "thin $snap"
	# Parts of the first block, one in the middle and the last: shared ones are copied.
	for b in 0 $((blocks / 3)) $((blocks - 1)); do letters a origin $((b * block + 3)) 5; done
	letters b origin $((blocks / 2 * block)) $((2 * block))
	blkdiscard -f -o $((blocks / 2 * block * 512)) -l $((block * 512)) /dev/mapper/origin || fault "discard $id"
	create_snap $((snap + 1)) $id origin || fault "create_snap $((snap + 1)) $id"
	letters c origin 1 1
	pool_message delete $((snap + 1)) || fault "delete $((snap + 1))"
	[ "$(sha_of /dev/mapper/snap)" = "$before" ] || fault "the snapshot of $id is not what $id was"
	lines="$lines$(thin_line origin $id $sectors)
$(thin_line snap $snap $sectors)
"
	dmsetup remove snap && dmsetup remove origin || fault "remove $id"
done
printf '%s' "$lines"
echo "status pool: $(dmsetup status pool)"
dmsetup remove pool && check_metadata || fault "thin_check"

pool_create "$block" 0 || fault "second opening"
printf '%s' "$lines" >/tmp/lines
while read -r _ id sectors rest; do
	thin_activate again $id $sectors && [ "$(thin_line again $id $sectors)" = "thin $id $sectors $rest" ] ||
		fault "thin $id reads otherwise after the second opening"
	dmsetup remove again
done </tmp/lines
dmsetup remove pool
kmsg
exit $bad
