/** A small pool of 64 KiB blocks in memory, and thin devices in it. */
import { bytes } from '../../src/base/index.js'
import type { ThinDevice, ThinPool } from '../../src/pool/index.js'
import { devId, formatted, type MemoryFiles } from './memory-pool.js'

export const BLOCK = 64 * 1024
export const SIZE = bytes(64 * BLOCK)

export const files = (dataBlocks = 16): MemoryFiles => formatted({ blockSectors: 128, dataBlocks })
export const filled = (length: number, value: number): Buffer => Buffer.alloc(length, value)
export const failure = (errno: string): Error => Object.assign(new Error(errno), { code: errno })
export const turn = (): Promise<void> => new Promise(resolve => setImmediate(resolve))

/** A thin device, made when the pool has none of the id. */
export function thin(pool: ThinPool, id: number): ThinDevice {
  if (!pool.metadata.hasDevice(devId(id))) pool.devices.createThin(devId(id))
  return pool.devices.get(devId(id), SIZE)
}

export function byteAt(device: ThinDevice, offset: number): number {
  const found = Buffer.alloc(1)
  device.read(offset, 1, found, 0)
  return found[0]!
}
