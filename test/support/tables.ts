import { mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Test } from 'tap'
import type { BlockDevice } from '../../src/device/index.js'
import { NO_EVENTS } from '../../src/pool/index.js'
import { type Extent, type Source, Tables, type Target } from '../../src/tables/index.js'

export const SECTOR = 512

/** Tables in this process, and a folder for what is below them. */
export interface TablesHere {
  tables: Tables
  folder: string
  /** Minor numbers whose event counter went up, in that order. */
  events: number[]
  /** A sparse file of so many sectors, as an extent. */
  file(name: string, sectors: number): Extent
  /** Another process's in the place of this one's, as after its death: nothing is closed. */
  again(): TablesHere
}

export function tablesHere(t: Test): TablesHere {
  const folder = mkdtempSync('/dev/shm/thinfs-tables-')
  t.teardown(() => rmSync(folder, { recursive: true, force: true }))
  return here(t, folder)
}

function here(t: Test, folder: string): TablesHere {
  const events: number[] = []
  const tables = new Tables({
    folder,
    takesOver: () => false,
    events: { event: minor => void events.push(minor) },
    poolEvents: () => NO_EVENTS,
  })
  t.teardown(() => tables.close().catch(() => {}))
  return {
    tables,
    folder,
    events,
    file(name, sectors) {
      const path = join(folder, name)
      writeFileSync(path, '', { flag: 'wx', mode: 0o600 })
      const length = sectors * SECTOR
      truncateSync(path, length)
      return { path, offset: 0, length }
    },
    again: () => here(t, folder),
  }
}

/** Makes a device with a table that serves. */
export async function make(tables: Tables, minor: number, ...table: Target[]): Promise<void> {
  await tables.create(minor)
  await reload(tables, minor, ...table)
}

/** What `dmsetup reload` and `resume` do. */
export async function reload(tables: Tables, minor: number, ...table: Target[]): Promise<void> {
  await tables.load(minor, table, false)
  await tables.resume(minor)
}

export async function put(device: BlockDevice, offset: number, bytes: Uint8Array): Promise<void> {
  await device.write(offset, bytes.length, bytes, 0)
}

export async function get(device: BlockDevice, offset: number, size: number): Promise<Buffer> {
  const found = Buffer.alloc(size, 0xee)
  if (!device.read(offset, size, found, 0)) await device.readLater(offset, size, found, 0)
  return found
}

/** An error of ours with the errno of that name. */
export const errno = (name: string): { name: string; errno: string } => ({
  name: 'ThinfsError',
  errno: name,
})

const isPool = { blockSize: 128, lowWater: 0 }
const noFeatures = {
  skipBlockZeroing: false,
  ignoreDiscard: false,
  noDiscardPassdown: false,
  readOnly: false,
  errorIfNoSpace: false,
}

export type PoolTable = Extract<Target, { type: 'thin-pool' }>

/** A thin-pool line over all of two extents. */
export function poolLine(
  metadata: Extent,
  data: Extent,
  changes: Partial<PoolTable> = {},
): PoolTable {
  return {
    type: 'thin-pool',
    start: 0,
    length: data.length / SECTOR,
    metadata: [metadata],
    data: [data],
    ...isPool,
    ...noFeatures,
    ...changes,
  }
}

export const thinLine = (
  pool: number,
  devId: number,
  length: number,
  externalOrigin?: Source,
): Target => ({
  type: 'thin',
  start: 0,
  length,
  pool,
  devId,
  ...(externalOrigin && { externalOrigin }),
})
