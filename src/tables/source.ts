/** Opening what a target's bytes are in. */
import { bytes, refused, SECTOR_SIZE } from '../base/index.js'
import type { BlockDevice } from '../device/index.js'
import { ExtentStore, type FileStore, type SharedFiles, type StorePart } from '../storage/index.js'
import { StoreDevice } from './store-device.js'
import type { Extent, Source } from './table-engine.js'

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
  close(): void
}

/** Opens the files of a list; parts that follow each other become one. */
export function openExtents(
  extents: readonly Extent[],
  files: SharedFiles,
  readOnly: boolean,
): OpenExtents {
  const taken: FileStore[] = []
  const close = (): void => {
    for (const file of taken.splice(0)) files.release(file)
  }
  try {
    if (extents.length === 0) throw refused('EINVAL', 'no extents')
    const parts: StorePart[] = []
    for (const { path, offset, length } of extents) {
      const isRange = [offset, length, offset + length].every(
        n => Number.isSafeInteger(n) && n >= 0,
      )
      if (!isRange) throw refused('EINVAL', `${path}: ${length} bytes at ${offset}`)
      const file = files.take(path, readOnly)
      taken.push(file)
      const last = parts.at(-1)
      if (last?.store === file && last.offset + last.length === offset) {
        last.length = bytes(last.length + length)
      } else parts.push({ store: file, offset: bytes(offset), length: bytes(length) })
    }
    const path = [...new Set(extents.map(extent => extent.path))].join(', ')
    return { store: new ExtentStore(path, parts), parts, close }
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
