import {
  bytes,
  type Clock,
  type DevId,
  MAX_DEVICE_SIZE,
  SECTOR_SIZE,
  ThinfsError,
  unlessAborted,
} from '../base/index.js'
import type { ThinPool } from '../pool/index.js'
import type { NameTransactions } from './name-transactions.js'
import { mustBeUnused, mustNotBeHeld, type Volume } from './volume.js'
import type { VolumeEntry, VolumeTable } from './volume-table.js'

/** Milliseconds after which sizes are saved: what Linux filesystems take to commit. */
const SAVE_PERIOD = 5000

export interface SizesParts {
  pool: ThinPool
  table: VolumeTable
  names: NameTransactions
  clock: Clock
  find(devId: number): Volume | undefined
  /** @throws VOLUME_MISSING for a volume that has gone meanwhile */
  mustBeThere(volume: Volume): void
  onChange(what: string, volume: string, devId: number): void
}

/**
 * The sizes of volumes, which dm-thin does not keep: volumes.json has them, and the journal those
 * that writes have changed since.
 */
export class Sizes {
  readonly #parts: SizesParts
  #cancelSave: (() => void) | null = null
  #stopped = false

  constructor(parts: SizesParts) {
    this.#parts = parts
  }

  /** `saveSoon` does nothing any more. */
  stop(): void {
    this.#stopped = true
    this.#cancelSave?.()
  }

  /**
   * Cuts a volume off or makes it longer, to any number of bytes. A write past `size` after the cut
   * makes it longer again. Changes of one volume's size are made in the order they come.
   * @param signal ends the wait for an earlier one, and a growth's for space, with its reason
   * @throws what discarding the part beyond may throw
   */
  set(volume: Volume, size: number, signal?: AbortSignal): Promise<void> {
    return this.#inOrder(volume, signal, () => this.#set(volume, size, signal))
  }

  /**
   * As `set`, for a command, which makes nothing smaller unless `shrink` says so, as in qemu-img.
   * @param size whole sectors
   * @param shrink may become smaller: data past the new end is cut off
   * @throws HAS_DATA, or BAD_ARGUMENT where nothing would be lost, for a smaller size without
   *   `shrink`; VOLUME_BUSY for one while it is open
   */
  resize(volume: Volume, size: number, shrink: boolean, signal?: AbortSignal): Promise<void> {
    return this.#inOrder(volume, signal, async () => {
      this.#parts.mustBeThere(volume)
      if (size >= volume.device.size) return await this.#set(volume, size, signal, true)
      mustBeUnused(volume)
      if (!shrink) await mustNotShrink(volume, size)
      volume.claim = 'shrink'
      try {
        await this.#set(volume, size, signal)
      } finally {
        volume.claim = null
      }
    })
  }

  /**
   * Schedules a commit of sizes that writes have changed: they are durable some seconds later, even
   * if nobody flushes.
   */
  saveSoon(): void {
    if (this.#cancelSave !== null || this.#stopped) return
    this.#cancelSave = this.#parts.clock.after(SAVE_PERIOD, () => {
      this.#cancelSave = null
      // The next flush reports a failure.
      if (this.#parts.pool.writable) this.commit().catch(() => {})
    })
  }

  /** Makes everything durable, sizes too. */
  async commit(): Promise<void> {
    const { pool, table, names, find } = this.#parts
    if (pool.devices.unsavedSizes.size === 0) return pool.commit()
    await names.exclusive(async () => {
      const changes = new Map<number, VolumeEntry>()
      for (const [devId, size] of pool.devices.unsavedSizes) {
        const volume = find(devId)
        if (volume) changes.set(devId, { ...volume.entry, size })
      }
      // The change that held the lock before may have saved these sizes already.
      if (changes.size === 0) return pool.commit()
      pool.mustBeWritable()
      if (pool.stalled) await pool.commit()
      const current = pool.metadata.transactionId
      await table.change(changes, current + 1)
      for (const [devId, entry] of changes) {
        find(devId)!.entry = entry
        this.#saved(devId as DevId, entry.size)
      }
      pool.setTransactionId(current, current + 1)
      // When it has to be tried again, the sizes are right all the same.
      await pool.commit()
    })
  }

  /** @param onlyGrows the caller did not mean to cut anything off */
  async #set(volume: Volume, size: number, signal?: AbortSignal, onlyGrows = false): Promise<void> {
    // Once: a change that has begun runs to its end, and whoever holds the volume waits for it.
    mustNotBeHeld(volume)
    let wait: Promise<void> | null = Promise.resolve()
    for (let discards = false; wait !== null; ) {
      // A shrink that has begun to discard runs to its end, or it would leave holes in the old
      // size.
      await (discards ? wait : unlessAborted(wait, signal))
      // A large discard takes long: it runs while other changes have their turn.
      const tried = await this.#parts.names.exclusive(() => {
        if (onlyGrows) mustNotBeLonger(volume, size)
        return this.#try(volume, size)
      })
      wait = tried.wait
      discards ||= tried.discards
    }
    volume.modified = Date.now()
    this.#parts.onChange(`resized to ${size} bytes`, volume.name, volume.devId)
  }

  /** Runs `change` when the changes of the volume's size before it have ended. */
  #inOrder<T>(
    volume: Volume,
    signal: AbortSignal | undefined,
    change: () => Promise<T>,
  ): Promise<T> {
    const before = volume.resized
    const result = unlessAborted(before, signal).then(change)
    // One that did not wait for its turn does not end those before it.
    volume.resized = Promise.allSettled([before, result])
    return result
  }

  /** One try to set a size. @returns what the next has to wait for; null when it is done */
  async #try(
    volume: Volume,
    size: number,
  ): Promise<{ wait: Promise<void> | null; discards: boolean }> {
    const { pool, names, mustBeThere } = this.#parts
    mustBeThere(volume)
    const { device } = volume
    const before = device.size
    const whole = Math.ceil(size / pool.blockSize) * pool.blockSize
    const origin = volume.entry.external_origin
    if (origin !== undefined && size < origin.shown) {
      // First: what is cut off must not show in its place when this ends in the middle.
      const entry = { ...volume.entry, external_origin: { ...origin, shown: size } }
      await names.commit(new Map([[volume.devId, entry]]))
    }
    const ready =
      size < before ? device.discard(whole, Math.max(before - whole, 0)) : device.clearPastEnd()
    if (ready !== undefined) return { wait: ready, discards: size < before }
    // Now, while no whole block is mapped past the end.
    if (size < before) device.cutOff(bytes(size))
    else device.size = bytes(size)
    try {
      await names.commit(new Map([[volume.devId, { ...volume.entry, size }]]), () =>
        this.#saved(device.devId, size),
      )
    } catch (err) {
      if (device.size === size) device.size = before
      throw err
    }
    return { wait: null, discards: false }
  }

  /** Notes that volumes.json has a size, unless a write has changed it meanwhile. */
  #saved(devId: DevId, size: number): void {
    const { pool, find } = this.#parts
    if (find(devId)?.device.size === size) pool.devices.sizeSaved(devId)
  }
}

/** @throws BAD_ARGUMENT for what no command may ask for */
export function checkSize(size: number): void {
  if (!Number.isInteger(size) || size < 0 || size > MAX_DEVICE_SIZE || size % SECTOR_SIZE !== 0) {
    throw new ThinfsError(
      'BAD_ARGUMENT',
      `size ${size}: whole sectors of ${SECTOR_SIZE} bytes up to ${MAX_DEVICE_SIZE} are allowed`,
    )
  }
}

/** @throws HAS_DATA, BAD_ARGUMENT saying what a smaller size would cut off */
async function mustNotShrink({ name, disk, device }: Volume, size: number): Promise<void> {
  const beyond = await disk.nextData(size)
  if (beyond < device.size) {
    const what = `${name}: it has data from byte ${beyond} on, which would be lost`
    throw new ThinfsError('HAS_DATA', `${what}; --shrink cuts it off`)
  }
  const what = `${name}: it has ${device.size} bytes, ${size} are fewer`
  throw new ThinfsError('BAD_ARGUMENT', `${what}; --shrink makes it smaller`)
}

/**
 * Writes past the end make a volume longer while a command to grow it waits for its turn.
 * @throws VOLUME_BUSY
 */
function mustNotBeLonger(volume: Volume, size: number): void {
  const { size: now } = volume.device
  if (now <= size) return
  const what = `${volume.name}: a writer has made it ${now} bytes long meanwhile`
  throw new ThinfsError('VOLUME_BUSY', `${what}, which is more than ${size}`)
}
