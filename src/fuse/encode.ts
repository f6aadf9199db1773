/**
 * Answers as bytes: each function writes one kind behind the reply header of the slot at byte
 * `base` and returns how many bytes it takes.
 */
import {
  ATTR,
  ATTR_OUT,
  COPY_FILE_RANGE_OUT,
  ENTRY_OUT,
  FOPEN_DIRECT_IO,
  FOPEN_KEEP_CACHE,
  IOCTL_OUT,
  LSEEK_OUT,
  OPEN_OUT,
  STATFS_OUT,
  WRITE_OUT,
} from './abi.js'
import type { Attributes, FileSystemStatistics, IoctlAnswer } from './file-system.js'
import type { Slots } from './slots.js'

export type Encode<T> = (slots: Slots, base: number, value: T) => number

export const encodeNothing: Encode<void> = () => 0

/** Data that was read to the payload's place already. */
export const encodeRead: Encode<number> = (_slots, _base, size) => size

export const encodeEntry: Encode<Attributes> = (slots, base, attributes) => {
  writeEntry(slots, base + slots.payload, attributes)
  return ENTRY_OUT.size
}

export const encodeAttributes: Encode<Attributes> = (slots, base, attributes) => {
  const at = base + slots.payload
  slots.buffer.fill(0, at, at + ATTR_OUT.at.attr)
  writeAttributes(slots, at + ATTR_OUT.at.attr, attributes)
  return ATTR_OUT.size
}

/** @param fh file handle to give out */
export const encodeOpen: Encode<number> = (slots, base, fh) => {
  writeOpen(slots, base + slots.payload, fh, FOPEN_KEEP_CACHE)
  return OPEN_OUT.size
}

/** @param fh file handle to give out */
export const encodeOpenDirect: Encode<number> = (slots, base, fh) => {
  writeOpen(slots, base + slots.payload, fh, FOPEN_DIRECT_IO)
  return OPEN_OUT.size
}

export const encodeLink: Encode<string> = (slots, base, target) =>
  slots.buffer.write(target, base + slots.payload)

export const encodeIoctl: Encode<IoctlAnswer> = (slots, base, { errno, output }) => {
  const at = base + slots.payload
  slots.buffer.fill(0, at, at + IOCTL_OUT.size)
  IOCTL_OUT.write(slots.view, at, { result: -errno })
  return IOCTL_OUT.size + output.copy(slots.buffer, at + IOCTL_OUT.size)
}

export const encodeOpendir: Encode<number> = (slots, base, fh) => {
  writeOpen(slots, base + slots.payload, fh, 0)
  return OPEN_OUT.size
}

/** @param fh file handle to give out */
export const encodeCreate: Encode<{ attributes: Attributes; fh: number }> = (
  slots,
  base,
  { attributes, fh },
) => {
  writeEntry(slots, base + slots.payload, attributes)
  writeOpen(slots, base + slots.payload + ENTRY_OUT.size, fh, FOPEN_KEEP_CACHE)
  return ENTRY_OUT.size + OPEN_OUT.size
}

/** Of WRITE and COPY_FILE_RANGE: bytes moved. */
export const encodeWrite: Encode<number> = (slots, base, size) => {
  slots.setU32(base + slots.payload + WRITE_OUT.at.size, size)
  slots.setU32(base + slots.payload + WRITE_OUT.at.padding, 0)
  return WRITE_OUT.size
}

export const encodeCopy64: Encode<number> = (slots, base, size) => {
  slots.setU64(base + slots.payload + COPY_FILE_RANGE_OUT.at.bytesCopied, size)
  return COPY_FILE_RANGE_OUT.size
}

export const encodeSeek: Encode<number> = (slots, base, offset) => {
  slots.setU64(base + slots.payload + LSEEK_OUT.at.offset, offset)
  return LSEEK_OUT.size
}

export const encodeStatistics: Encode<FileSystemStatistics> = (slots, base, statistics) => {
  const at = base + slots.payload
  slots.buffer.fill(0, at, at + STATFS_OUT.size)
  STATFS_OUT.write(slots.view, at, {
    blocks: statistics.blocks,
    bfree: statistics.blocksFree,
    bavail: statistics.blocksAvailable,
    files: statistics.files,
    ffree: statistics.filesFree,
    bsize: statistics.blockSize,
    namelen: statistics.nameMax,
    frsize: statistics.blockSize,
  })
  return STATFS_OUT.size
}

/**
 * Writes ENTRY_OUT at byte `at`: nothing may be cached, for sizes and names change below the
 * kernel.
 */
export function writeEntry(slots: Slots, at: number, attributes: Attributes): void {
  slots.buffer.fill(0, at, at + ENTRY_OUT.at.attr)
  slots.setU64(at + ENTRY_OUT.at.nodeid, attributes.ino)
  slots.setU64(at + ENTRY_OUT.at.generation, attributes.generation)
  writeAttributes(slots, at + ENTRY_OUT.at.attr, attributes)
}

function writeAttributes(slots: Slots, at: number, attributes: Attributes): void {
  const { atime, mtime, ctime } = attributes
  slots.setU64(at + ATTR.at.ino, attributes.ino)
  slots.setU64(at + ATTR.at.size, attributes.size)
  slots.setU64(at + ATTR.at.blocks, attributes.blocks)
  slots.setU64(at + ATTR.at.atime, Math.floor(atime))
  slots.setU64(at + ATTR.at.mtime, Math.floor(mtime))
  slots.setU64(at + ATTR.at.ctime, Math.floor(ctime))
  slots.setU32(at + ATTR.at.atimensec, nanoseconds(atime))
  slots.setU32(at + ATTR.at.mtimensec, nanoseconds(mtime))
  slots.setU32(at + ATTR.at.ctimensec, nanoseconds(ctime))
  slots.setU32(at + ATTR.at.mode, attributes.mode)
  slots.setU32(at + ATTR.at.nlink, attributes.nlink)
  slots.setU32(at + ATTR.at.uid, attributes.uid)
  slots.setU32(at + ATTR.at.gid, attributes.gid)
  slots.setU32(at + ATTR.at.rdev, attributes.rdev ?? 0)
  slots.setU32(at + ATTR.at.blksize, attributes.blockSize)
  slots.setU32(at + ATTR.at.flags, 0)
}

function nanoseconds(time: number): number {
  return Math.min(999_999_999, Math.round((time - Math.floor(time)) * 1e9))
}

function writeOpen(slots: Slots, at: number, fh: number, flags: number): void {
  slots.setU64(at + OPEN_OUT.at.fh, fh)
  slots.setU32(at + OPEN_OUT.at.openFlags, flags)
  slots.setU32(at + OPEN_OUT.at.padding, 0)
}
