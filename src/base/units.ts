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
/** 512 bytes, what block interfaces and the superblock speak. */
export type Sectors = Unit<'sectors'>
/** Index of a data block in the pool's data device. */
export type DataBlock = Unit<'data block'>
/** Index of a block in a thin device's address space. */
export type VirtualBlock = Unit<'virtual block'>
/** Index of a 4 KiB block of the metadata device. */
export type MetadataBlock = Unit<'metadata block'>
/** Identifier of a thin device, 0..2^24-1. */
export type DevId = Unit<'dev id'>

export const SECTOR_SIZE = 512
export const KIB = 1024
export const MIB = 1024 * KIB
export const GIB = 1024 * MIB
export const TIB = 1024 * GIB
/** Largest thin device id: 24 bits. */
export const MAX_DEV_ID = 0xff_ffff as DevId

/** Largest virtual size of a thin device in bytes: numbers here are exact to 2^53. */
export const MAX_DEVICE_SIZE = (2 ** 53 - 2 ** 30) as Bytes

export const bytes = (n: number): Bytes => n as Bytes
export const sectorsToBytes = (n: Sectors): Bytes => (n * SECTOR_SIZE) as Bytes
export const bytesToSectors = (n: Bytes): Sectors => (n / SECTOR_SIZE) as Sectors

/**
 * Whether a pool can have data blocks of so many bytes: dm-thin's multiples of 64 KiB up to 1 GiB, and
 * thinfs's own 4, 8, 16 and 32 KiB, which the kernel refuses.
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
