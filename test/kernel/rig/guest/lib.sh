# Helpers for the scripts that run in the guest (busybox sh).
META=/dev/vda
DATA=/dev/vdb

# busybox would take its own dd and sha256sum; these do direct I/O and are faster.
dd() { /usr/sbin/dd "$@"; }
sha256sum() { /usr/sbin/sha256sum "$@"; }

die() { echo "rig: $*" >&2; exit 1; }

# block_size_of META: the data block size in sectors that its superblock has
block_size_of() { dd if="$1" bs=4 skip=84 count=1 2>/dev/null | od -An -tu4 | tr -d ' '; }

# pool_create BLOCKSECTORS LOWWATER [FEATURE...]: /dev/mapper/pool over $META and $DATA
pool_create() {
	local block=$1 low=$2
	shift 2
	dmsetup create pool --table "0 $(blockdev --getsz $DATA) thin-pool $META $DATA $block $low $# $*"
}

# pool_message WORD...: such as pool_message create_thin 0
pool_message() { dmsetup message pool 0 "$*"; }

# thin_activate NAME ID SECTORS: /dev/mapper/NAME
thin_activate() { dmsetup create "$1" --table "0 $3 thin /dev/mapper/pool $2"; }

# create_snap ID ORIGIN NAME: a snapshot of the origin, which is active as NAME
create_snap() {
	dmsetup suspend "$3" && pool_message create_snap "$1" "$2" && dmsetup resume "$3"
}

# sha_of DEV: of all that it reads as
sha_of() {
	local sum
	sum=$(set -o pipefail; dd if="$1" bs=1M 2>/dev/null | sha256sum) || return 1
	echo "${sum%% *}"
}

# thin_line NAME ID SECTORS: `thin ID SECTORS SHA256 MAPPED_SECTORS` of an active thin device
thin_line() {
	local sum
	sum=$(sha_of "/dev/mapper/$1") || return 1
	echo "thin $2 $3 $sum $(dmsetup status "$1" | awk '{ print $4 }')"
}

# check_metadata: thin_check; the pool must be gone
check_metadata() { thin_check $META >&2 && echo "thin_check ok"; }

# kmsg: what the kernel has said since the last call, without times
kmsg() { dmesg -c | sed 's/^<[0-9]*>//; s/^\[ *[0-9.]*\] /kmsg /'; }
