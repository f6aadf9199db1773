/**
 * The rules for a device's tables: the kernel's refusals, with its errnos and words.
 *
 * Source: drivers/md/dm-table.c, dm-thin.c; what they answer was asked of Linux 6.1.
 */
import { refused } from '../base/index.js'
import { type DeviceNumber, nameOfDevice } from './abi.js'
import { type Device, type DeviceTable, dependenciesOf, type Table } from './device-table.js'
import type { LowerDevices } from './lower-devices.js'
import { devicesOf, type Line, type LineTarget } from './targets.js'

/** How far the target reaches into each device that it names, in sectors. */
function usesOf(target: LineTarget): { device: DeviceNumber; end: number }[] {
  switch (target.type) {
    case 'linear':
      return [{ device: target.place.device, end: target.place.start + target.length }]
    case 'striped': {
      const each = target.length / target.stripes.length
      return target.stripes.map(({ device, start }) => ({ device, end: start + each }))
    }
    case 'thin-pool':
      return [{ device: target.data, end: target.length }]
    default:
      return []
  }
}

export function mustContinue({ start, length, type }: Line, end: number): void {
  if (length === 0) throw refused('EINVAL', 'zero-length target')
  if (start !== end) throw refused('EINVAL', `${type}: Gap in table`)
  // Bytes have to be exact.
  if (start + length >= 2 ** 44) throw refused('EINVAL', `${type}: too large`)
}

/** A pool is the only target of a table that can be written to. */
export function mustMix(
  target: LineTarget,
  before: readonly LineTarget[],
  readOnly: boolean,
): void {
  const isPool = target.type === 'thin-pool'
  if ((isPool && before.length > 0) || before[0]?.type === 'thin-pool') {
    throw refused('EINVAL', 'thin-pool must appear alone in table')
  }
  if (isPool && readOnly) {
    throw refused('EINVAL', 'thin-pool: target type may not be included in a read-only table')
  }
}

/** A pool stays a pool, or becomes an error. */
export function mustReplace(targets: readonly LineTarget[], live: Table | null): void {
  const fits = targets.some(({ type }) => type === 'thin-pool' || type === 'error')
  if (live?.targets[0]?.type !== 'thin-pool' || fits) return
  throw refused('EINVAL', "can't replace immutable target type thin-pool")
}

/** A pool that is there keeps its devices, and its block size whatever the line says. */
export function keepPool([target]: readonly LineTarget[], { live, inactive }: Device): void {
  const there = [live, inactive]
    .map(table => table?.targets[0])
    .find(found => found?.type === 'thin-pool')
  if (target?.type !== 'thin-pool' || there?.type !== 'thin-pool') return
  if (nameOfDevice(target.metadata) !== nameOfDevice(there.metadata)) {
    throw refused('EINVAL', 'thin-pool: different pool cannot replace a pool')
  }
  if (nameOfDevice(target.data) !== nameOfDevice(there.data)) {
    throw refused('EBUSY', 'thin-pool: data device already in use by a pool')
  }
  target.blockSize = there.blockSize
}

/** One metadata device belongs to one pool. */
export function mustBeAlone(
  device: Device,
  targets: readonly LineTarget[],
  devices: DeviceTable,
): void {
  const [target] = targets
  if (target?.type !== 'thin-pool') return
  const wanted = nameOfDevice(target.metadata)
  const isTaken = devices
    .all()
    .filter(other => other !== device)
    .flatMap(({ live, inactive }) => [live, inactive])
    .some(table => {
      const [pool] = table?.targets ?? []
      return pool?.type === 'thin-pool' && nameOfDevice(pool.metadata) === wanted
    })
  if (isTaken) throw refused('EBUSY', `thin-pool: ${wanted} is the metadata of another pool`)
}

/** @throws EINVAL where the table leads back to the device: it would wait for itself */
export function mustNotHoldItself(
  device: Device,
  targets: readonly LineTarget[],
  devices: DeviceTable,
): void {
  const seen = new Set<Device>()
  const visit = (numbers: DeviceNumber[]): void => {
    for (const number of numbers) {
      const below = devices.at(number)
      if (below === device) throw refused('EINVAL', `${device.name}: the table names the device`)
      if (below === undefined || seen.has(below)) continue
      seen.add(below)
      visit([...dependenciesOf(below.live), ...dependenciesOf(below.inactive)])
    }
  }
  visit(targets.flatMap(devicesOf))
}

/** @throws EINVAL where a device that the table names is too small, EACCES where it is read-only */
export async function mustFit(
  targets: readonly LineTarget[],
  readOnly: boolean,
  lower: LowerDevices,
): Promise<void> {
  for (const target of targets) {
    for (const { device, end } of usesOf(target)) {
      const size = await lower.sizeOf(device)
      if (end > size) {
        const name = nameOfDevice(device)
        throw refused('EINVAL', `${target.type}: ${name} too small: ${size} sectors, wanted ${end}`)
      }
      if (!readOnly && (await lower.isReadOnly(device))) {
        throw refused('EACCES', `${target.type}: ${nameOfDevice(device)} is read-only`)
      }
    }
  }
}
