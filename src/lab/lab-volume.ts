import type { Volume, Volumes } from '../volumes/index.js'
import { Injector, isNone } from './injector.js'
import { Recorder } from './recorder.js'
import { VolumeDisk } from './through.js'

/**
 * The layers before the device of a volume: first the injected faults, so that nothing is recorded
 * that did not happen, then the recorder. Requests may be under way in it when nothing is done to
 * the volume any more, so it is kept for as long as the volume.
 */
export class LabVolume {
  readonly volume: Volume
  readonly injector: Injector
  readonly recorder: Recorder
  readonly #disk: VolumeDisk
  #records = false

  constructor(volume: Volume, volumes: Volumes) {
    const { device, disk } = volume
    this.volume = volume
    this.#disk = new VolumeDisk(disk, () => volumes.flushDevice(device.devId))
    this.recorder = new Recorder(this.#disk)
    this.injector = new Injector(this.recorder, {
      name: () => volume.name,
      clock: volumes.pool.clock,
      ignored: () => this.recorder.ignoredFlush(),
    })
  }

  /** Whether requests go by way of the recorder, whether it records yet or not. */
  setRecords(records: boolean): void {
    this.#records = records
    this.settle()
  }

  /** Whether the content must not change. */
  setReadOnly(readOnly: boolean): void {
    this.#disk.readOnly = readOnly
    this.settle()
  }

  /** Lets requests pass through here as long as there is something to do. */
  settle(): void {
    const { volume } = this
    const isIdle = isNone(this.injector.faults) && !this.#records && !this.#disk.readOnly
    volume.io = isIdle ? volume.disk : this.injector
  }
}
