/**
 * Devices of the device-mapper service in this process: the real tables on files, and a pretended
 * machine.
 */
import { closeSync, ftruncateSync, mkdirSync, openSync } from 'node:fs'
import { refused } from '../../src/base/index.js'
import { type DeviceNumber, nameOfDevice } from '../../src/dm/abi.js'
import { type Device, DeviceTable } from '../../src/dm/device-table.js'
import { Devices } from '../../src/dm/devices.js'
import { Ioctls } from '../../src/dm/ioctls.js'
import type { Loops } from '../../src/dm/loops.js'
import type { Lower, Machine } from '../../src/dm/machine.js'
import { NO_EVENTS } from '../../src/pool/index.js'
import { Tables } from '../../src/tables/index.js'

/**
 * A machine with the disks 254:0 and 254:16; nothing is mounted, and what is open is said by the
 * test.
 */
export class FakeMachine implements Machine {
  /** Minors that somebody has open. */
  readonly open = new Set<number>()
  /** Minors that have requests under way. */
  readonly requests = new Set<number>()
  /** What was done to loop devices, links and filesystems. */
  readonly log: string[] = []
  readonly #disks: ReadonlyMap<string, Lower>
  readonly #autoclear = new Set<number>()
  /** Ends with the last close of a minor, as the kernel tells. */
  onLastClose: (minor: number) => void = () => {}

  constructor(disks: ReadonlyMap<string, Lower>) {
    this.#disks = disks
  }

  readonly loops: Loops = {
    attach: async minor => {
      this.log.push(`attach ${minor}`)
    },
    detach: async (minor, deferred) => {
      this.log.push(`detach ${minor}`)
      if (!this.open.has(minor)) return 'gone'
      if (deferred) this.#autoclear.add(minor)
      return 'in use'
    },
    ensure: async () => {},
    keep: async minor => {
      this.#autoclear.delete(minor)
    },
    update: async (minor, readOnly) => {
      this.log.push(`update ${minor}${readOnly ? ' read-only' : ''}`)
    },
    sync: async minor => {
      this.log.push(`sync ${minor}`)
    },
  }

  close(minor: number): void {
    this.open.delete(minor)
    if (this.#autoclear.delete(minor)) this.onLastClose(minor)
  }

  async freeze(): Promise<null> {
    return null
  }
  async thaw(): Promise<void> {}
  async openCount({ minor }: Device): Promise<number> {
    return this.open.has(minor) ? 1 : 0
  }
  async isHeld({ minor }: Device): Promise<boolean> {
    return this.open.has(minor)
  }
  hasRequests({ minor }: Device): boolean {
    return this.requests.has(minor)
  }
  async lookUp(word: string): Promise<DeviceNumber> {
    if (!/^\d+:\d+$/.test(word)) throw refused('ENODEV', word)
    const [major, minor] = word.split(':').map(Number) as [number, number]
    if (major !== 253 && !this.#disks.has(word)) throw refused('ENXIO', word)
    return { major, minor }
  }
  async lower(device: DeviceNumber): Promise<Lower> {
    const disk = this.#disks.get(nameOfDevice(device))
    if (disk === undefined) throw refused('ENXIO', nameOfDevice(device))
    return disk
  }
  async claim(device: DeviceNumber): Promise<void> {
    this.log.push(`claim ${nameOfDevice(device)}`)
  }
  unclaim(device: DeviceNumber): void {
    this.log.push(`unclaim ${nameOfDevice(device)}`)
  }
  linkUp({ name }: Device): void {
    this.log.push(`link ${name}`)
  }
  linkDown({ name }: Device): void {
    this.log.push(`unlink ${name}`)
  }
}

export interface Rig {
  machine: FakeMachine
  devices: Devices
  ioctls: Ioctls
  tables: Tables
  /** Tables of another process, as an engine that follows one that died has them. */
  again(): Tables
}

/** @param folder an empty one, for the disks: 254:0 of 4 MiB and 254:16 of 64 MiB */
export function makeRig(folder: string): Rig {
  const disk = (name: string, size: number): Lower => {
    const path = `${folder}/${name}`
    const fd = openSync(path, 'w')
    ftruncateSync(fd, size)
    closeSync(fd)
    return { path, offset: 0, size: size / 512, readOnly: false }
  }
  mkdirSync(`${folder}/run`)
  const disks = new Map([
    ['254:0', disk('metadata', 4 * 2 ** 20)],
    ['254:16', disk('data', 64 * 2 ** 20)],
  ])
  const machine = new FakeMachine(disks)
  const again = (): Tables =>
    new Tables({
      folder: `${folder}/run`,
      takesOver: () => false,
      events: { event: minor => devices.table.get(minor)?.event() },
      poolEvents: () => NO_EVENTS,
    })
  const tables = again()
  // Numbers as the kernel gives them out.
  const devices = new Devices(tables, machine, new DeviceTable(253, 0))
  machine.onLastClose = minor => devices.removals.closed(minor)
  return { machine, devices, tables, again, ioctls: new Ioctls(devices, machine) }
}
