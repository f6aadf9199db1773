/** Opens the volumes on the files of a PowerDisk, and reads all of them. */
import { VolumeFs } from '../../src/fs/index.js'
import { type Discards, NO_EVENTS, ThinPool } from '../../src/pool/index.js'
import type { Store } from '../../src/storage/index.js'
import { Volumes } from '../../src/volumes/index.js'
import type { TableFile } from '../../src/volumes/volume-table.js'
import { TestClock } from './memory-pool.js'
import type { Handles } from './power-disk.js'
import type { Found } from './volumes-model.js'

export interface Opened {
  volumes: Volumes
  fs: VolumeFs
  clock: TestClock
}

/** As openPool does it with files. */
export async function openVolumes(
  handles: Handles,
  discards: Discards = 'passdown',
): Promise<Opened> {
  const clock = new TestClock()
  const pool = await ThinPool.open({
    ...handles,
    readOnly: false,
    discards,
    onFull: 'error',
    lowWaterMark: 0,
    clock,
    events: NO_EVENTS,
  })
  const volumes = openTable(pool, handles.metadata, handles.table)
  return { volumes, fs: new VolumeFs(volumes, { uid: 0, gid: 0 }, 0), clock }
}

/**
 * The volumes of an open pool.
 * @param onChange is told what commands have done
 * @param folder that external origins are in
 */
export function openTable(
  pool: ThinPool,
  metadata: Store,
  table: TableFile,
  onChange: (what: string) => void = () => {},
  folder = '/none',
): Volumes {
  return Volumes.open({
    name: 'p',
    pool,
    metadata,
    table,
    place: { path: folder, held: folder },
    uid: 0,
    gid: 0,
    now: () => 0,
    onChange,
    async onResized() {},
  })
}

/** Reads every volume that has a name. */
export function readVolumes({ volumes }: Opened): Found {
  const found = new Map<string, { devId: number; size: number; content: Buffer }>()
  for (const { name, devId, device } of volumes.all()) {
    const content = Buffer.alloc(device.size)
    device.read(0, device.size, content, 0)
    found.set(name, { devId, size: device.size, content })
  }
  return found
}

/** Waits until what the last commit freed was passed down. */
export async function released({ volumes: { pool } }: Opened): Promise<void> {
  const { metadata } = pool
  while (metadata.nrAllocatableDataBlocks < pool.space.data.nrFree) {
    await new Promise(resolve => setImmediate(resolve))
  }
}

/** Waits until the space of removed volumes has gone back. */
export async function reaped({ volumes }: Opened): Promise<void> {
  const isGoing = (devId: number): boolean => volumes.byDevId(devId)?.entry.removed === true
  for (let turns = 0; [...volumes.pool.metadata.deviceIds()].some(isGoing); turns++) {
    if (turns > 10_000) throw new Error('a removed volume is not reclaimed')
    await new Promise(resolve => setImmediate(resolve))
  }
}
