/** Opening the devices and files that hold a target's bytes. */
import { bytes, refused, SECTOR_SIZE } from '../base/index.js'
import type { BlockDevice } from '../device/index.js'
import {
  ExtentStore,
  type FileStore,
  idOf,
  type SharedFiles,
  type StorePart,
  StripedStore,
} from '../storage/index.js'
import { StoreDevice } from './store-device.js'
import type { Range, Source, Stripes } from './table-engine.js'

/** Devices of ours by their minor number. */
export interface Devices {
  /** @throws BAD_ARGUMENT, ENODEV */
  device(minor: number): BlockDevice
}

/** The bytes from `start` of `device` on. */
export interface OpenSource {
  device: BlockDevice
  /** Bytes. */
  start: number
  close(): void
}

/** @throws as `Devices.device` and `SharedFiles.take` */
export function openSource(
  source: Source,
  devices: Devices,
  files: SharedFiles,
  readOnly: boolean,
): OpenSource {
  if ('minor' in source) {
    const start = source.start * SECTOR_SIZE
    return { device: devices.device(source.minor), start, close() {} }
  }
  const extents = openExtents(source.extents, files, readOnly)
  return { device: new StoreDevice(extents.store), start: 0, close: extents.close }
}

export interface OpenExtents {
  store: ExtentStore
  parts: readonly StorePart[]
  /** The parts of files and disks that it is made of, in no order; stripes as a whole. */
  ranges: readonly StorePart[]
  close(): void
}

/** Opens the files of a list; parts that follow each other become one. */
export function openExtents(
  extents: readonly Range[],
  files: SharedFiles,
  readOnly: boolean,
): OpenExtents {
  const taken: FileStore[] = []
  const ranges: StorePart[] = []
  const close = (): void => {
    for (const file of taken.splice(0)) files.release(file)
  }
  const open = (list: readonly Range[]): OpenExtents => {
    if (list.length === 0) throw refused('EINVAL', 'no extents')
    const parts: StorePart[] = []
    for (const extent of list) {
      const { offset, length } = extent
      const isRange = [offset, length, offset + length].every(
        n => Number.isSafeInteger(n) && n >= 0,
      )
      if (!isRange)
        throw refused('EINVAL', `${length} bytes at ${offset} of ${JSON.stringify(extent)}`)
      if ('stripes' in extent) {
        parts.push({ store: openStripes(extent), offset: bytes(offset), length: bytes(length) })
        continue
      }
      const file = files.take(extent.path, readOnly)
      taken.push(file)
      ranges.push({ store: file, offset: bytes(offset), length: bytes(length) })
      const last = parts.at(-1)
      if (last?.store === file && last.offset + last.length === offset) {
        last.length = bytes(last.length + length)
      } else parts.push({ store: file, offset: bytes(offset), length: bytes(length) })
    }
    const path = [...new Set(parts.map(({ store }) => store.path))].join(', ')
    return { store: new ExtentStore(path, parts), parts, ranges, close }
  }
  const openStripes = ({ stripes, chunk }: Stripes): StripedStore => {
    const stores = stripes.map(stripe => open(stripe).store)
    if (!(chunk > 0) || stores.length === 0)
      throw refused('EINVAL', `${stores.length} stripes of ${chunk}`)
    const path = [...new Set(stores.map(store => store.path))].join(', ')
    return new StripedStore(path, chunk, stores)
  }
  try {
    return open(extents)
  } catch (err) {
    close()
    throw err
  }
}

/** The first `length` bytes of a list; all of it when it has fewer. */
export function trimmed(parts: readonly StorePart[], length: number): StorePart[] {
  const kept: StorePart[] = []
  let left = length
  for (const part of parts) {
    const size = Math.min(part.length, left)
    if (size <= 0) break
    kept.push({ ...part, length: bytes(size) })
    left -= size
  }
  return kept
}

/**
 * Tells a list of parts from every other by where its first byte is.
 * @throws BAD_ARGUMENT for an empty one; IO_ERROR when there is no such file
 */
export function placeOf([first]: readonly Range[]): string {
  if (first === undefined) throw refused('EINVAL', 'no extents')
  const path = 'stripes' in first ? placeOf(first.stripes[0] ?? []) : idOf(first.path)
  return `${path}-${first.offset}`
}
