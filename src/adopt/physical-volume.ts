/**
 * The text by which a physical volume of LVM describes its volume group.
 *
 * One of the first four sectors has the label, which says where the header is; the header says
 * where the metadata areas are; each is a ring of texts, with a pointer to the latest. All numbers
 * are little-endian. Source: lvm2, lib/format_text/layout.h, lib/label/label.h.
 */
import { closeSync, openSync, readSync } from 'node:fs'
import { crc32 } from '@node-rs/crc32'
import { ioError, SECTOR_SIZE, ThinfsError } from '../base/index.js'

const LABEL_SECTORS = 4
const LABEL = 'LABELONE'
const LABEL_TYPE = 'LVM2 001'
const MDA_MAGIC = ' LVM2 x[5A%r0N*>'
const MDA_HEADER_SIZE = 512
/** The checksum's start, of which zlib's crc32 takes the complement. */
const CRC_START = ~0xf597a6cf >>> 0
/** The text of a volume group: LVM's own limit is the area, of some MiB. */
const TEXT_MAX = 64 * 1024 * 1024
/** A raw_locn whose text is not to be used. */
const RAW_LOCN_IGNORED = 1

export interface PhysicalVolume {
  /** 32 letters and digits. */
  uuid: string
  /** The text of its volume group; null where no area of this volume has it. */
  text: string | null
}

/**
 * @param path an image or a block device
 * @param begin where the physical volume begins in it, in bytes
 * @returns null where there is none
 * @throws IO_ERROR; METADATA_CORRUPT for one that is damaged
 */
export function readPhysicalVolume(path: string, begin: number): PhysicalVolume | null {
  let fd: number
  try {
    fd = openSync(path, 'r')
  } catch (err) {
    throw ioError(path, err)
  }
  const read = (offset: number, length: number): Buffer => {
    const bytes = Buffer.alloc(length)
    try {
      for (let done = 0; done < length; ) {
        const got = readSync(fd, bytes, done, length - done, begin + offset + done)
        if (got === 0) break
        done += got
      }
    } catch (err) {
      throw ioError(path, err)
    }
    return bytes
  }
  try {
    return find(path, read)
  } finally {
    closeSync(fd)
  }
}

type Read = (offset: number, length: number) => Buffer

function find(path: string, read: Read): PhysicalVolume | null {
  const sectors = read(0, LABEL_SECTORS * SECTOR_SIZE)
  for (let at = 0; at < sectors.length; at += SECTOR_SIZE) {
    const sector = sectors.subarray(at, at + SECTOR_SIZE)
    if (sector.toString('latin1', 0, 8) !== LABEL) continue
    if (sector.toString('latin1', 24, 32) !== LABEL_TYPE) continue
    if (sumOf(sector.subarray(20)) !== sector.readUInt32LE(16)) {
      throw damaged(path, 'the label of the physical volume has a wrong checksum')
    }
    return headerOf(path, sector.subarray(sector.readUInt32LE(20)), read)
  }
  return null
}

/** pv_header: the uuid, the size, a list of data areas that ends with a 0, and one of metadata. */
function headerOf(path: string, header: Buffer, read: Read): PhysicalVolume {
  const uuid = header.toString('latin1', 0, 32)
  const areas: { offset: number; size: number }[] = []
  let lists = 0
  for (let at = 40; lists < 2 && at + 16 <= header.length; at += 16) {
    const offset = Number(header.readBigUInt64LE(at))
    const size = Number(header.readBigUInt64LE(at + 8))
    if (offset === 0) lists++
    else if (lists === 1) areas.push({ offset, size })
  }
  for (const area of areas) {
    const text = textOf(path, area, read)
    if (text !== null) return { uuid, text }
  }
  return { uuid, text: null }
}

function textOf(path: string, area: { offset: number; size: number }, read: Read): string | null {
  const header = read(area.offset, MDA_HEADER_SIZE)
  if (header.toString('latin1', 4, 20) !== MDA_MAGIC) {
    throw damaged(path, `no metadata area at ${area.offset}, where the header has one`)
  }
  if (sumOf(header.subarray(4)) !== header.readUInt32LE(0)) {
    throw damaged(path, `the metadata area at ${area.offset} has a wrong checksum`)
  }
  const offset = Number(header.readBigUInt64LE(40))
  const size = Number(header.readBigUInt64LE(48))
  if (offset === 0 || (header.readUInt32LE(60) & RAW_LOCN_IGNORED) !== 0) return null
  if (size > Math.min(TEXT_MAX, area.size) || offset >= area.size) {
    throw damaged(path, `the metadata area at ${area.offset} points to ${size} bytes at ${offset}`)
  }
  // The ring goes on behind its header.
  const first = Math.min(size, area.size - offset)
  const text = Buffer.concat([
    read(area.offset + offset, first),
    read(area.offset + MDA_HEADER_SIZE, size - first),
  ])
  if (sumOf(text) !== header.readUInt32LE(56)) {
    throw damaged(path, 'the description of the volume group has a wrong checksum')
  }
  return text.toString('utf8').replace(/\0+$/, '')
}

const sumOf = (bytes: Buffer): number => ~crc32(bytes, CRC_START) >>> 0

const damaged = (path: string, what: string): ThinfsError =>
  new ThinfsError('METADATA_CORRUPT', `${path}: ${what}`)
