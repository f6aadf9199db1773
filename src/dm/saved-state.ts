/**
 * The state that the successor of a killed service needs: devices, and how the FUSE connections
 * were agreed on. In /run, so for this boot only, as the devices are. Each is written before
 * whoever has asked for the change is told.
 */
import { mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import type { Negotiated } from '../fuse/index.js'
import { list } from '../host/index.js'
import type { DeviceNumber } from './abi.js'
import { Device, type Table } from './device-table.js'

/** The processes and connections of a service. */
export interface SavedService {
  enginePid: number
  files: Negotiated
  mapper: Negotiated
  /** When it was started, in seconds since 1970. */
  since: number
  /** It has made /dev/mapper. */
  madeMapper: boolean
}

interface SavedDevice {
  number: DeviceNumber
  name: string
  uuid: string
  names: string[]
  live: Table | null
  inactive: Table | null
  suspended: boolean
  freezing: boolean
  deferredRemove: boolean
  eventNr: number
}

export class SavedState {
  readonly #folder: string

  /** @param folder made if it is not there */
  constructor(folder: string) {
    mkdirSync(folder, { recursive: true, mode: 0o700 })
    this.#folder = folder
  }

  saveService(service: SavedService): void {
    this.#write('service.json', service)
  }

  /** Null when there was none. */
  service(): SavedService | null {
    return this.#read<SavedService>('service.json')
  }

  /** As it is now; nothing is kept of a device that is gone. */
  saveDevice(device: Device): void {
    const { number, name, uuid, names, live, inactive, suspended } = device
    const { freezing, deferredRemove, eventNr, minor } = device
    if (device.gone || !device.ready) {
      rmSync(`${this.#folder}/${minor}.json`, { force: true })
      return
    }
    const saved: SavedDevice = {
      ...{ number, name, uuid, names: [...names], live, inactive },
      ...{ suspended, freezing, deferredRemove, eventNr },
    }
    this.#write(`${minor}.json`, saved)
  }

  /** The devices, none of which anybody else has. */
  devices(): Device[] {
    return list(this.#folder)
      .filter(name => /^\d+\.json$/.test(name))
      .map(name => this.#read<SavedDevice>(name))
      .filter(saved => saved !== null)
      .map(({ number, name, uuid, names, ...rest }) => {
        const device = new Device(number, name, uuid)
        for (const earlier of names) device.names.add(earlier)
        return Object.assign(device, rest, { ready: true })
      })
  }

  #write(name: string, value: unknown): void {
    const path = `${this.#folder}/${name}`
    writeFileSync(`${path}.new`, JSON.stringify(value), { mode: 0o600 })
    renameSync(`${path}.new`, path)
  }

  #read<T>(name: string): T | null {
    try {
      return JSON.parse(readFileSync(`${this.#folder}/${name}`, 'utf8')) as T
    } catch {
      return null
    }
  }
}
