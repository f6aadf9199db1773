/**
 * Units as types: a number that knows what it counts.
 *
 * All are plain numbers at run time, safe integers below 2^53. Casts live here and where bytes are
 * parsed. Multiply to convert: `<<` wraps at 32 bits.
 */
declare const unit: unique symbol
type Unit<U extends string> = number & { readonly [unit]: U }

/** Offset or length in bytes. */
export type Bytes = Unit<'bytes'>
/** Index of a data block in the pool's data device. */
export type DataBlock = Unit<'data block'>
/** Index of a block in a thin device's address space. */
export type VirtualBlock = Unit<'virtual block'>
/** Identifier of a thin device, 0..2^24-1. */
export type DevId = Unit<'dev id'>

/** Bytes of a sector: block interfaces, the superblock and st_blocks count in these. */
export const SECTOR_SIZE = 512
/** Bytes of a page of memory. */
export const PAGE_SIZE = 4096
/** Bytes of a metadata block. */
export const METADATA_BLOCK_SIZE = 4096
/** Largest number of metadata blocks that the index block can describe: 255 bitmaps of 16320. */
export const MAX_METADATA_BLOCKS = 255 * 16320
/** The file beside pool.yaml that has the record of the tenant, of a pool that many hosts reach. */
export const TENANT_FILE = 'tenant'
/** Largest number of bytes in the name of a file. */
export const NAME_MAX = 255
export const KIB = 1024
export const MIB = 1024 * KIB
export const GIB = 1024 * MIB
export const TIB = 1024 * GIB
/**
 * Largest single read or write, in bytes: that of a FUSE request with MAX_PAGES, the kernel's
 * default limit. Longer ones are split before they come to a device.
 */
export const MAX_IO = MIB
/** Largest thin device id: 24 bits. */
export const MAX_DEV_ID = 0xff_ffff as DevId

/** Largest virtual size of a thin device in bytes: numbers here are exact to 2^53. */
export const MAX_DEVICE_SIZE = (2 ** 53 - 2 ** 30) as Bytes

/** Longest wait of a write for space, in seconds: timers run for 24 days at most. */
const QUEUE_TIMEOUT_MAX = 1_000_000
/** The values of `queue_timeout`, for messages. */
export const QUEUE_TIMEOUTS = `seconds from 0, which is for ever, to ${QUEUE_TIMEOUT_MAX}`
/** Whether `queue_timeout` can have a value. */
export const isQueueTimeout = (seconds: number): boolean =>
  Number.isInteger(seconds) && seconds >= 0 && seconds <= QUEUE_TIMEOUT_MAX

export const bytes = (n: number): Bytes => n as Bytes

/**
 * Whether a pool can have data blocks of so many bytes: dm-thin's multiples of 64 KiB up to 1 GiB,
 * and thinfs's own 4, 8, 16 and 32 KiB, which the kernel refuses.
 */
export const isDataBlockSize = (size: number): boolean =>
  (size > 0 && size <= GIB && size % (64 * KIB) === 0) ||
  [4 * KIB, 8 * KIB, 16 * KIB, 32 * KIB].includes(size)

/** A device number of stat(2) as /proc and /sys write it: `7:0`. Source: gnu_dev_major(3). */
export function deviceNumber(dev: number): string {
  const major = Math.floor(dev / 2 ** 8) % 2 ** 12
  const minor = (dev % 2 ** 8) + Math.floor(dev / 2 ** 20) * 2 ** 8
  return `${major}:${minor}`
}
