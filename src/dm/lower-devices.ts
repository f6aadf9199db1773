/**
 * The devices that a table names: other devices of ours, or files and disks of the machine.
 */
import { refused, SECTOR_SIZE } from '../base/index.js'
import type { Range, Source } from '../tables/index.js'
import { type DeviceNumber, nameOfDevice } from './abi.js'
import { type DeviceTable, sizeOfTable } from './device-table.js'
import type { Machine } from './machine.js'
import type { Below, Place } from './targets.js'

export class LowerDevices implements Below {
  readonly #table: DeviceTable
  readonly #machine: Pick<Machine, 'lower'>

  constructor(table: DeviceTable, machine: Pick<Machine, 'lower'>) {
    this.#table = table
    this.#machine = machine
  }

  async isReadOnly(device: DeviceNumber): Promise<boolean> {
    const own = this.#table.at(device)
    return own ? (own.live?.readOnly ?? false) : (await this.#machine.lower(device)).readOnly
  }

  async sizeOf(device: DeviceNumber): Promise<number> {
    const own = this.#table.at(device)
    return own ? sizeOfTable(own.live) : (await this.#machine.lower(device)).size
  }

  async sourceOf({ device, start }: Place, length: number): Promise<Source> {
    const own = this.#table.at(device)
    if (own !== undefined) return { minor: own.minor, start }
    const { path, offset } = await this.#machine.lower(device)
    return {
      extents: [{ path, offset: offset + start * SECTOR_SIZE, length: length * SECTOR_SIZE }],
    }
  }

  async extentsOf(device: DeviceNumber, length: number | null): Promise<Range[]> {
    const size = await this.sizeOf(device)
    return await this.#extentsIn(device, 0, Math.min(length ?? size, size))
  }

  /** Files and disks behind a range of sectors. */
  async #extentsIn(device: DeviceNumber, start: number, length: number): Promise<Range[]> {
    const own = this.#table.at(device)
    if (own === undefined) {
      const { path, offset } = await this.#machine.lower(device)
      return [{ path, offset: offset + start * SECTOR_SIZE, length: length * SECTOR_SIZE }]
    }
    const extents: Range[] = []
    for (const target of own.live?.targets ?? []) {
      const from = Math.max(start, target.start)
      const to = Math.min(start + length, target.start + target.length)
      if (from >= to) continue
      if (target.type === 'linear') {
        const { place } = target
        const begin = place.start + (from - target.start)
        extents.push(...(await this.#extentsIn(place.device, begin, to - from)))
      } else if (target.type === 'striped') {
        const each = target.length / target.stripes.length
        const stripes = await Promise.all(
          target.stripes.map(place => this.#extentsIn(place.device, place.start, each)),
        )
        const [offset, length] = [(from - target.start) * SECTOR_SIZE, (to - from) * SECTOR_SIZE]
        extents.push({ stripes, chunk: target.chunk * SECTOR_SIZE, offset, length })
      } else {
        const wanted = 'it has to be linear or striped'
        throw refused('EINVAL', `thin-pool: ${own.name} is ${target.type}; ${wanted}`)
      }
    }
    return extents
  }

  poolOf(device: DeviceNumber): number {
    const own = this.#table.at(device)
    if (own?.live?.targets[0]?.type === 'thin-pool') return own.minor
    throw refused('EINVAL', `thin: ${nameOfDevice(device)}: Couldn't get pool mapped device`)
  }
}
