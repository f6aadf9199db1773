# read-pool.sh [ID SECTORS]...
# Opens the pool and prints for each device `thin ID SECTORS SHA256 MAPPED_SECTORS`, then the
# kernel's status line of the pool. Status 0: all was opened and read, and thin_check passes.
pool_create "$(block_size_of $META)" 0 || { kmsg; die "the kernel does not take the pool"; }
bad=0
while [ $# -gt 1 ]; do
	dmsetup create --readonly "thin$1" --table "0 $2 thin /dev/mapper/pool $1" &&
		thin_line "thin$1" "$1" "$2" && dmsetup remove "thin$1" || { echo "FAULT thin $1"; bad=1; }
	shift 2
done
echo "status pool: $(dmsetup status pool)"
dmsetup remove pool && check_metadata || bad=1
kmsg
exit $bad
