/**
 * A recording in the format of dm-log-writes, which replay-log of xfstests reads.
 *
 * A sector with the super, then a sector with each entry, behind it the data of a write. A mark has
 * its name behind the entry, in the same sector. A flush stands behind what it made durable, not
 * where it ended. Flushes that were ignored are left out: no disk has done them. All is
 * little-endian.
 * Source: Documentation/admin-guide/device-mapper/log-writes.rst; drivers/md/dm-log-writes.c.
 */
import { closeSync, ftruncateSync, openSync } from 'node:fs'
import { layout, MIB, SECTOR_SIZE, viewOf } from '../base/index.js'
import { native } from '../native.js'
import { RECORDED } from './record-format.js'
import type { RecordEntry, RecordReader } from './record-reader.js'

const MAGIC_HIGH = 0x6a_7366
const MAGIC_LOW = 0x7773_6872
const VERSION = 1

const SUPER = layout('log_write_super', 28, {
  magicLow: [0, 'u32', 'of a u64'],
  magicHigh: [4, 'u32', 'of a u64'],
  version: [8, 'u64', ''],
  nrEntries: [16, 'u64', ''],
  sectorSize: [24, 'u32', ''],
})

const ENTRY = layout('log_write_entry', 32, {
  sector: [0, 'u64', 'first sector of the device'],
  nrSectors: [8, 'u64', 'sectors of data that follow; of a discard, sectors of the device'],
  flags: [16, 'u64', ''],
  dataLen: [24, 'u64', 'bytes of the name of a mark'],
})

const FLUSH = 1
const DISCARD = 4
const MARK = 8

/** The mark that ends each log. */
const END = 'dm-log-writes-end'
/** Bytes that the name of a mark has room for. */
export const MAX_MARK = SECTOR_SIZE - ENTRY.size - 1
/** Zeros have no entry of their own: they are written, in pieces that a reader has memory for. */
const MAX_ZEROS = 16 * MIB
/**
 * replay-log leaves out a larger discard where it cannot pass it on, as on a file, and writes zeros
 * for others.
 */
const MAX_DISCARD = 128 * MIB

/**
 * Writes `reader`'s recording to a new file.
 * @param contentAfter fills `buffer` with what the volume has at `offset` after so many entries,
 *   which never become fewer; asked for what is not whole sectors
 * @returns how many entries the file has
 * @throws EEXIST
 */
export function exportLogWrites(
  reader: RecordReader,
  path: string,
  contentAfter: (entries: number, offset: number, buffer: Buffer) => void,
): number {
  const fd = openSync(path, 'wx', 0o600)
  try {
    const log = new LogWrites(fd)
    const flushes = flushesAfter(reader)
    for (let i = 0; i <= reader.count; i++) {
      if (i > 0) addEntry(log, reader, i, contentAfter)
      for (let left = flushes.get(i) ?? 0; left > 0; left--) log.add(0, 0, FLUSH)
    }
    log.mark(END)
    return log.finish()
  } finally {
    closeSync(fd)
  }
}

/** How many flushes made just the first so many entries durable. */
function flushesAfter(reader: RecordReader): Map<number, number> {
  const flushes = new Map<number, number>()
  for (let i = 1; i <= reader.count; i++) {
    const { kind, at } = reader.entry(i)
    if (kind === RECORDED.flush) flushes.set(at, (flushes.get(at) ?? 0) + 1)
  }
  return flushes
}

function addEntry(
  log: LogWrites,
  reader: RecordReader,
  number: number,
  contentAfter: (entries: number, offset: number, buffer: Buffer) => void,
): void {
  const entry = reader.entry(number)
  const { kind, offset, length, at } = entry
  if (kind === RECORDED.mark) log.mark(reader.mark(entry))
  if (kind === RECORDED.flush || kind === RECORDED.ignoredFlush || kind === RECORDED.mark) return
  const begin = roundUp(offset)
  const end = Math.max(roundDown(offset + length), begin)
  const write = (from: number, to: number): void => {
    const data = Buffer.alloc(to - from)
    contentAfter(number, from, data)
    log.write(from, data)
  }
  if (kind === RECORDED.write) {
    if (begin === offset && end === offset + length) {
      const data = Buffer.alloc(length)
      reader.data(data, length, at)
      log.write(offset, data)
    } else {
      write(roundDown(offset), roundUp(offset + length))
    }
    return
  }
  clear(log, entry, begin, end)
  if (begin > offset) write(roundDown(offset), begin)
  if (end < offset + length) write(end, roundUp(offset + length))
}

function clear(log: LogWrites, { kind }: RecordEntry, begin: number, end: number): void {
  const discards = kind === RECORDED.discard
  const most = discards ? MAX_DISCARD : MAX_ZEROS
  for (let from = begin; from < end; from += most) {
    const length = Math.min(most, end - from)
    if (discards) log.add(from, length, DISCARD)
    else log.zeros(from, length)
  }
}

const roundDown = (offset: number): number => Math.floor(offset / SECTOR_SIZE) * SECTOR_SIZE
const roundUp = (offset: number): number => Math.ceil(offset / SECTOR_SIZE) * SECTOR_SIZE

/** The file, entry by entry. */
class LogWrites {
  readonly #fd: number
  readonly #sector = Buffer.alloc(SECTOR_SIZE)
  readonly #view = viewOf(this.#sector)
  #end = SECTOR_SIZE
  #count = 0

  constructor(fd: number) {
    this.#fd = fd
  }

  /** @param offset bytes, whole sectors, as `length` is */
  add(offset: number, length: number, flags: number, name = ''): void {
    this.#sector.fill(0)
    const dataLen = this.#sector.write(name, ENTRY.size, MAX_MARK)
    const sector = offset / SECTOR_SIZE
    ENTRY.write(this.#view, 0, { sector, nrSectors: length / SECTOR_SIZE, flags, dataLen })
    this.#put(this.#sector, this.#end)
    this.#end += SECTOR_SIZE
    this.#count++
  }

  write(offset: number, data: Buffer): void {
    this.add(offset, data.length, 0)
    this.#put(data, this.#end)
    this.#end += data.length
  }

  /** Data that are a hole of the file. */
  zeros(offset: number, length: number): void {
    this.add(offset, length, 0)
    this.#end += length
  }

  mark(name: string): void {
    this.add(0, 0, MARK, name)
  }

  finish(): number {
    this.#sector.fill(0)
    SUPER.write(this.#view, 0, {
      ...{ magicLow: MAGIC_LOW, magicHigh: MAGIC_HIGH, version: VERSION },
      ...{ nrEntries: this.#count, sectorSize: SECTOR_SIZE },
    })
    this.#put(this.#sector, 0)
    ftruncateSync(this.#fd, this.#end)
    return this.#count
  }

  #put(bytes: Buffer, offset: number): void {
    native.file_write(this.#fd, bytes, 0, bytes.length, offset)
  }
}
