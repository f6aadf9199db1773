import { IoCounters, ThinfsError } from '../base/index.js'
import type { BlockDevice, ThinDevice, ThinPool } from '../pool/index.js'
import type { VolumeEntry } from './volume-table.js'

/** An open volume: a thin device with a name, a size and an owner. */
export class Volume {
  readonly device: ThinDevice
  /** The volume's device; with an external origin, the one that stands before it. */
  disk: BlockDevice
  readonly devId: number
  /** The device that requests for content go to: the disk, or a layer before it (src/lab). */
  io: BlockDevice
  /**
   * Why nobody may remove the volume or change its size: `it is being recorded`. Null: anybody may.
   */
  heldFor: string | null = null
  /** As volumes.json has it, or would: a device that it does not name has one made up. */
  entry: VolumeEntry
  /** Requests for its content. */
  readonly counters = new IoCounters()
  /** Descriptors that have it open. */
  opens = 0
  /** Whether a command that was given it without a name has yet to open it. */
  awaited = false
  /**
   * A command's work during which nobody may open the volume. The command sets it before its first
   * await, so that `opens` stays as the command saw it.
   */
  claim: 'removal' | 'shrink' | null = null
  /** Ends when the last change of its size that was asked for has ended. */
  resized: Promise<unknown> = Promise.resolve()
  /**
   * Milliseconds since 1970: last change of anything. Not kept over a restart, as `modified` is
   * not.
   */
  changed: number
  /** An array, because a field with a fraction would be allocated anew for every WRITE. */
  readonly #modified = new Float64Array(1)
  /** Tells volumes that had the same device id one after the other apart. */
  readonly generation: number
  /**
   * Requests that went to the device and wait for something: whoever changes `io` waits for them.
   */
  readonly underWay = new Set<Promise<unknown>>()

  constructor(entry: VolumeEntry, device: ThinDevice, generation: number) {
    this.entry = entry
    this.device = device
    this.disk = device
    this.io = device
    this.devId = entry.dev_id
    this.generation = generation
    this.modified = (entry.created ?? 0) * 1000
    this.changed = this.modified
  }

  /** Milliseconds since 1970: last change of content. */
  get modified(): number {
    return this.#modified[0]!
  }

  set modified(time: number) {
    this.#modified[0] = time
  }

  get name(): string {
    return this.entry.name
  }

  /** Keeps a request in `underWay` until it ends. @returns the request */
  track<T>(request: Promise<T>): Promise<T> {
    const ended = (): void => void this.underWay.delete(request)
    this.underWay.add(request)
    request.then(ended, ended)
    return request
  }
}

/** Whether the space of a volume goes back: its name is gone, and nobody needs it any more. */
export const hasToGo = ({ entry, opens }: Volume): boolean =>
  entry.removed && opens === 0 && entry.partial === undefined

/** Data blocks that a pool keeps for a volume with such an entry. */
export const reserveOf = (
  { blockSize }: ThinPool,
  { reserve = 0 }: Pick<VolumeEntry, 'reserve'>,
): number => Math.ceil(reserve / blockSize)

/** Lets the pool follow what the entry of a volume says of its space. */
export function followEntry(pool: ThinPool, { device, entry }: Volume): void {
  const { limit, removed, on_full: onFull = null, queue_timeout: queueTimeout = null } = entry
  const { space, blockSize } = pool
  const limitBlocks = limit === undefined ? Number.POSITIVE_INFINITY : Math.floor(limit / blockSize)
  // The event told of another limit.
  if (device.limit !== limitBlocks) device.limitReached = false
  device.limit = limitBlocks
  space.setOnFullOf(device, onFull)
  space.setQueueTimeoutOf(device, queueTimeout)
  const isKept = !removed && pool.writable
  space.reserves.set(device.devId, isKept ? reserveOf(pool, entry) : 0)
}

/** @throws VOLUME_BUSY for a volume that somebody holds */
export function mustNotBeHeld(volume: Volume): void {
  if (volume.heldFor === null) return
  throw new ThinfsError('VOLUME_BUSY', `${volume.name}: ${volume.heldFor}`)
}

/** @throws VOLUME_BUSY, or `code`, for a volume that `whyUsed` has something to say of */
export function mustBeUnused(
  volume: Volume,
  code: 'VOLUME_BUSY' | 'DEVICE_BUSY' = 'VOLUME_BUSY',
): void {
  const why = whyUsed(volume)
  if (why !== null) throw new ThinfsError(code, why)
}

/** Says that a volume is held or open, or that a command makes it smaller; null when none is so. */
export function whyUsed({ name, heldFor, opens, claim }: Volume): string | null {
  if (heldFor !== null) return `${name}: ${heldFor}`
  if (opens > 0) return `${name}: it is open`
  return claim === 'shrink' ? `${name}: it is being made smaller` : null
}
