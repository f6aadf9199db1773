import { bytes, type DevId, type Later, refused, SECTOR_SIZE, ThinfsError } from '../base/index.js'
import { type Message, parseMessage, poolStatus, type ThinPool } from '../pool/index.js'
import type { LivePool, LivePools, PoolTable } from './live-pool.js'
import type { TargetDevice } from './target-device.js'

/**
 * A thin pool. Reads of its device read the data device. Source: drivers/md/dm-thin.c, pool_map.
 */
export class PoolTarget implements TargetDevice {
  /** The kernel swaps tables before it asks a pool whether the new one fits. */
  readonly staysWhenRefused = true
  readonly size: number
  readonly live: LivePool
  readonly #pools: LivePools
  readonly #table: PoolTable

  /** @param live taken for this target, which gives it back */
  constructor(live: LivePool, table: PoolTable, pools: LivePools) {
    this.size = table.length * SECTOR_SIZE
    this.live = live
    this.#table = table
    this.#pools = pools
  }

  get gone(): boolean {
    return false
  }

  read(offset: number, size: number, buffer: Uint8Array, at: number): boolean {
    return this.live.data.read(offset, size, buffer, at)
  }

  readLater(offset: number, size: number, buffer: Uint8Array, at: number): Promise<void> {
    return this.live.data.readLater(offset, size, buffer, at)
  }

  write(offset: number, size: number, buffer: Uint8Array, at: number): void {
    this.live.data.write(offset, size, buffer, at)
  }

  discard(offset: number, length: number): Later<void> {
    return this.live.data.discard(offset, length)
  }

  zero(offset: number, length: number): Later<void> {
    return this.live.data.zero(offset, length)
  }

  flush(): Promise<void> {
    return this.live.data.flush()
  }

  nextData(offset: number): number {
    return this.live.data.nextData(offset)
  }

  nextHole(offset: number): number {
    return this.live.data.nextHole(offset)
  }

  check(): void {}

  async resume(): Promise<void> {
    await this.#shutGate()
    await this.live.resume(this.#table, this.size)
    this.live.gate.open()
  }

  /**
   * As in the kernel, thin devices of a suspended pool are suspended, and what they did is
   * committed.
   */
  async suspend(): Promise<void> {
    await this.#shutGate()
    // A pool that cannot commit has reported that already.
    await this.live.pool.commit().catch(() => {})
  }

  async #shutGate(): Promise<void> {
    const { gate, pool } = this.live
    this.live.shutBy = this
    if (gate.isShut) return
    gate.shut()
    await gate.drain(() => pool.space.writesWaiting)
  }

  async status(flush: boolean): Promise<string> {
    const { pool } = this.live
    if (flush) {
      await pool.commit().catch(() => {})
      // The status counts blocks as free once they are released.
      if (pool.mode === 'out_of_data_space') await pool.space.allReleased()
    }
    return poolStatus(pool)
  }

  message(text: string): Promise<void> {
    const { live } = this
    return live.exclusive(async () => {
      const { mode, reason } = live.pool
      if (mode !== 'write' && mode !== 'out_of_data_space') {
        throw new ThinfsError('NOT_SUPPORTED', `the pool is ${mode}: ${reason}`)
      }
      await this.#carryOut(live.pool, parseMessage(text))
    })
  }

  async #carryOut(pool: ThinPool, message: Message): Promise<void> {
    switch (message.kind) {
      case 'create_thin':
        pool.devices.createThin(message.devId)
        break
      case 'create_snap':
        pool.devices.createSnap(message.devId, message.origin)
        break
      case 'delete':
        return this.#delete(pool, message.devId)
      case 'set_transaction_id':
        pool.setTransactionId(message.current, message.next)
        break
      case 'reserve_metadata_snap':
        return pool.reserveMetadataSnap()
      case 'release_metadata_snap':
        return pool.releaseMetadataSnap()
    }
    await pool.commitOrUndo()
  }

  /** Works in slices, so that other devices do not wait. No table can open it meanwhile. */
  async #delete(pool: ThinPool, devId: DevId): Promise<void> {
    if (!pool.metadata.hasDevice(devId)) throw new ThinfsError('DEVICE_MISSING', `device ${devId}`)
    if (this.live.isThinOpen(devId)) throw new ThinfsError('DEVICE_BUSY', `device ${devId}`)
    this.live.deleting = devId
    try {
      await pool.devices.empty(pool.devices.get(devId, bytes(0)), () => false)
      pool.devices.delete(devId)
      await pool.commitOrUndo()
    } finally {
      this.live.deleting = null
    }
  }

  close(): Promise<void> {
    // Thin devices outlive the table of their pool.
    if (this.live.shutBy === this) this.live.gate.open()
    return this.#pools.release(this.live)
  }
}

/** @throws BAD_ARGUMENT for what the kernel refuses, too */
export function checkPoolTable({ blockSize, length }: PoolTable): void {
  const isSize = blockSize >= 128 && blockSize <= 2097152 && blockSize % 128 === 0
  if (!isSize) throw refused('EINVAL', `Invalid block size: ${blockSize} sectors`)
  if (length <= 0) throw refused('EINVAL', 'a pool of no sectors')
}
