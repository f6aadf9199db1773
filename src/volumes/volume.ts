import { ThinfsError } from '../base/index.js'
import type { ThinDevice } from '../pool/index.js'
import type { VolumeEntry } from './volume-table.js'

/** An open volume: a thin device with a name, a size and an owner. */
export class Volume {
  readonly device: ThinDevice
  readonly devId: number
  /** As volumes.json has it, or would: a device that it does not name has one made up. */
  entry: VolumeEntry
  /** Descriptors that have it open. */
  opens = 0
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

  constructor(entry: VolumeEntry, device: ThinDevice, generation: number) {
    this.entry = entry
    this.device = device
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
}

/** @throws VOLUME_BUSY, or `code`, for a volume that is open or that a command makes smaller */
export function mustBeUnused(
  volume: Volume,
  code: 'VOLUME_BUSY' | 'DEVICE_BUSY' = 'VOLUME_BUSY',
): void {
  if (volume.opens > 0) throw new ThinfsError(code, `${volume.name}: it is open`)
  if (volume.claim === 'shrink') {
    throw new ThinfsError(code, `${volume.name}: it is being made smaller`)
  }
}
