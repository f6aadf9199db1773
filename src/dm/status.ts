import type { DmDeviceStatus, DmStatus } from '../control/index.js'
import { nameOfDevice } from './abi.js'
import { type Device, dependenciesOf, type Table } from './device-table.js'
import type { Devices } from './devices.js'
import { loopPath } from './loops.js'
import { paramsOf } from './targets.js'

/** All devices, for people and programs. */
export async function statusOf(
  devices: Devices,
  service: Omit<DmStatus, 'devices'>,
): Promise<DmStatus> {
  const all = devices.table.all().filter(({ ready }) => ready)
  return {
    ...service,
    devices: await Promise.all(all.map(device => describe(devices, device))),
  }
}

async function describe(devices: Devices, device: Device): Promise<DmDeviceStatus> {
  const { name, uuid, suspended, deferredRemove, eventNr, live, inactive } = device
  return {
    ...{ name, uuid, suspended, deferredRemove, eventNr },
    number: nameOfDevice(device.number),
    loop: loopPath(device.minor),
    readOnly: live?.readOnly ?? false,
    open: await devices.openCount(device),
    table: linesOf(live),
    inactive: linesOf(inactive),
    below: dependenciesOf(live).map(nameOfDevice),
  }
}

const linesOf = (table: Table | null): string[] =>
  (table?.targets ?? []).map(target =>
    `${target.start} ${target.length} ${target.type} ${paramsOf(target)}`.trimEnd(),
  )
