import { bytes, type DevId, ThinfsError } from '../base/index.js'
import { parseMessage } from '../pool/index.js'
import type { NameParts } from './namespace.js'
import { mustBeUnused } from './volume.js'
import { unnamed, type VolumeEntry } from './volume-table.js'

/**
 * dm-thin's messages to the pool. They make and delete devices by number, for a program that keeps
 * the transaction id itself: only `set_transaction_id` changes that.
 */
export class Messages {
  readonly #parts: NameParts

  constructor(parts: NameParts) {
    this.#parts = parts
  }

  /**
   * @param text such as `create_thin 0`
   * @throws BAD_MESSAGE; NOT_SUPPORTED in the pool's mode; what carrying it out throws
   */
  async handle(text: string): Promise<void> {
    const { pool, names } = this.#parts
    if (pool.mode !== 'write' && pool.mode !== 'out_of_data_space') {
      throw new ThinfsError('NOT_SUPPORTED', `the pool is ${pool.mode}: ${pool.reason}`)
    }
    const message = parseMessage(text)
    if (message.kind === 'delete') return this.#delete(message.devId)
    return names.exclusive(async () => {
      switch (message.kind) {
        case 'create_thin':
          return this.#create(message.devId, () => pool.devices.createThin(message.devId))
        case 'create_snap':
          return this.#snapshot(message.devId, message.origin)
        case 'set_transaction_id':
          if (pool.metadata.transactionId !== message.current) {
            const found = pool.metadata.transactionId
            throw new ThinfsError(
              'TRANSACTION_MISMATCH',
              `${message.current}, the pool is at ${found}`,
            )
          }
          return names.jump(message.current, message.next)
        case 'reserve_metadata_snap':
          return pool.reserveMetadataSnap()
        case 'release_metadata_snap':
          return pool.releaseMetadataSnap()
      }
    })
  }

  /**
   * The snapshot is as large as its origin, which the pool does not know but we do. The entry
   * follows the commit. A crash between the two leaves a device without an entry, as any that
   * another program made.
   */
  async #snapshot(devId: DevId, from: DevId): Promise<void> {
    const { pool, table, volumes } = this.#parts
    const origin = volumes.byDevId(from)
    await this.#create(devId, () => pool.devices.createSnap(devId, from))
    if (!origin) return
    const volume = volumes.byDevId(devId)!
    const entry = volumes.snapshotEntry(unnamed(devId), devId, origin)
    await table.change(new Map([[devId, entry]]), pool.metadata.transactionId)
    volume.entry = entry
    volume.device.size = bytes(entry.size)
    volumes.showOrigin(volume)
  }

  async #create(devId: DevId, create: () => void): Promise<void> {
    const { pool, table, volumes } = this.#parts
    if (!pool.space.metadata.hasRoom) await pool.space.metadata.makeRoom()
    if (!pool.metadata.hasDevice(devId)) {
      // The file may have a name for an earlier device, which another program deleted.
      await table.change(new Map([[devId, null]]), pool.metadata.transactionId)
    }
    create()
    await pool.commitOrUndo()
    volumes.add(devId)
  }

  async #delete(devId: DevId): Promise<void> {
    const { pool, table, names, volumes, reaper, onChange } = this.#parts
    const change = (entry: VolumeEntry | null) =>
      table.change(new Map([[devId, entry]]), pool.metadata.transactionId)
    const volume = await names.exclusive(async () => {
      const volume = volumes.byDevId(devId)
      // One whose name is gone is deleted by whoever took the name away.
      if (!volume || volume.entry.removed) {
        throw new ThinfsError('DEVICE_MISSING', `device ${devId}`)
      }
      mustBeUnused(volume, 'DEVICE_BUSY')
      const entry = { ...volume.entry, removed: true }
      await volumes.claimed([volume], async () => void (await change(entry)))
      volume.entry = entry
      onChange('removed', volume.name, devId)
      return volume
    })
    await reaper.reapBy(volume, async () => {
      pool.devices.delete(devId)
      await pool.commitOrUndo()
      await change(null)
    })
  }
}
