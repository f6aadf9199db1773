/**
 * The record of a pool's tenant: two blocks that every host reads which wants the pool.
 *
 * The first says who has the pool. It is written once, by whoever acquires it. The second is the
 * tenant's sign of life, which only the tenant writes. A tenant that was stopped in the middle of a
 * sign and goes on later thus never covers the record of the next one. docs/FORMAT.md#tenancy
 */
import { crc32c } from '@node-rs/crc32'
import { isZero, layout, ThinfsError, viewOf } from '../base/index.js'
import type { Host } from './host.js'

/** Bytes of each block: the first is at byte 0 of its place, the second behind it. */
export const TENANCY_BLOCK = 4096

/** All of it is in one sector: a disk that writes those whole never leaves half a record. */
export const TENANT = layout('Tenant', 512, {
  csum: [0, 'u32', 'CRC-32C of bytes 4..4096 without final inversion, xor 1953395713'],
  magic: [4, 'u32', '1852728692'],
  version: [8, 'u32', '1'],
  pad0: [12, 'u32', 'zero'],
  generation: [16, 'u64', 'tenants that the pool has had, this one included'],
  since: [24, 'u64', 'when it acquired the pool: seconds since 1970, by the clock of its host'],
  mountId: [32, 'bytes:16', 'random, of the mount'],
  bootId: [48, 'bytes:16', 'boot of its host, from proc(5)'],
  machineId: [64, 'bytes:16', 'its host, from machine-id(5); zeros where that has none'],
  hostname: [80, 'bytes:64', 'name of its host, UTF-8, then zeros'],
  address: [144, 'bytes:128', 'what the storage calls its client, UTF-8, then zeros'],
  rest: [272, 'bytes:240', 'zero, and so is the rest of the block'],
})

/** The second block. */
export const SIGN = layout('TenantSign', 64, {
  csum: [0, 'u32', 'CRC-32C of bytes 4..4096 without final inversion, xor 1953395714'],
  magic: [4, 'u32', '1852728692'],
  version: [8, 'u32', '1'],
  state: [12, 'u32', '1 has the pool, 2 has given it back'],
  generation: [16, 'u64', "the tenant's"],
  beat: [24, 'u64', 'one up with each sign'],
  time: [32, 'u64', 'of the sign: milliseconds since 1970, by the clock of its host'],
  mountId: [40, 'bytes:16', "the tenant's"],
  pad0: [56, 'u64', 'zero, and so is the rest of the block'],
})

const SALT = { tenant: 1_953_395_713, sign: 1_953_395_714 } as const

const MAGIC = 0x6e_6e_65_74
/** The magic numbers that a torn write of the first record can leave. */
const TORN_MAGICS = [0, 1, 2, 3].map(bytes => MAGIC % 256 ** bytes)
const VERSION = 1
const STATE = { has: 1, gaveBack: 2 } as const

/** A record that is not whole: nobody knows who the tenant is. */
export const DAMAGED = 'damaged'

/** Who has a pool, or had it last. */
export interface Tenant {
  generation: number
  /** Seconds since 1970, by the clock of its host. */
  since: number
  /** 32 hexadecimal digits. */
  mountId: string
  host: Host
  /** The storage's name for its client; empty where it has none. */
  address: string
}

/** A tenant's last sign of life. */
export interface Sign {
  generation: number
  mountId: string
  beat: number
  /** Milliseconds since 1970, by the clock of its host. */
  time: number
  gaveBack: boolean
}

/** Four kilobytes to be written as they are. */
export function encodeTenant(tenant: Tenant): Uint8Array {
  const { generation, since, mountId, host, address } = tenant
  const block = Buffer.alloc(TENANCY_BLOCK)
  TENANT.write(viewOf(block), 0, { magic: MAGIC, version: VERSION, generation, since })
  putHex(block, TENANT.at.mountId, mountId)
  putHex(block, TENANT.at.bootId, host.bootId)
  putHex(block, TENANT.at.machineId, host.machineId)
  putText(block, TENANT.at.hostname, TENANT.at.address, host.name)
  putText(block, TENANT.at.address, TENANT.at.rest, address)
  return stamped(block, SALT.tenant)
}

/**
 * The tenant that a block names.
 * @returns null where nobody has ever had the pool; 'damaged' for a block that is not whole
 * @throws POOL_MISMATCH for what is no record, or one of a later thinfs
 */
export function decodeTenant(block: Buffer, path: string): Tenant | typeof DAMAGED | null {
  if (isZero(block)) return null
  const { magic, version, csum, generation, since } = TENANT.read(viewOf(block), 0)
  // A sector is written whole, and nothing of a record is behind its first.
  const mayBeTorn = TORN_MAGICS.includes(magic) && isZero(block.subarray(TENANT.at.rest))
  if (magic !== MAGIC && !mayBeTorn) {
    throw new ThinfsError(
      'POOL_MISMATCH',
      `${path}: something else is where the tenant's record would be; is it the state of this pool?`,
    )
  }
  if (csum !== checksum(block, SALT.tenant)) return DAMAGED
  if (version !== VERSION) {
    const detail = `${path}: the tenant's record has version ${version}, wanted ${VERSION}`
    throw new ThinfsError('POOL_MISMATCH', detail)
  }
  return {
    generation,
    since,
    mountId: hexAt(block, TENANT.at.mountId),
    host: {
      name: textAt(block, TENANT.at.hostname, TENANT.at.address),
      machineId: hexAt(block, TENANT.at.machineId),
      bootId: hexAt(block, TENANT.at.bootId),
    },
    address: textAt(block, TENANT.at.address, TENANT.at.rest),
  }
}

export function encodeSign({ generation, mountId, beat, time, gaveBack }: Sign): Uint8Array {
  const block = Buffer.alloc(TENANCY_BLOCK)
  const state = gaveBack ? STATE.gaveBack : STATE.has
  SIGN.write(viewOf(block), 0, { magic: MAGIC, version: VERSION, state, generation, beat, time })
  putHex(block, SIGN.at.mountId, mountId)
  return stamped(block, SALT.sign)
}

/** @returns null for anything but a whole sign */
export function decodeSign(block: Buffer): Sign | null {
  const { magic, version, csum, state, ...sign } = SIGN.read(viewOf(block), 0)
  const isWhole = magic === MAGIC && csum === checksum(block, SALT.sign)
  if (!isWhole || version !== VERSION) return null
  const { generation, beat, time } = sign
  const mountId = hexAt(block, SIGN.at.mountId)
  return { generation, beat, time, mountId, gaveBack: state === STATE.gaveBack }
}

/** As that of a metadata block. */
const checksum = (block: Buffer, salt: number): number => (~crc32c(block.subarray(4)) ^ salt) >>> 0

function stamped(block: Buffer, salt: number): Buffer {
  block.writeUInt32LE(checksum(block, salt), 0)
  return block
}

const ID_SIZE = 16

const putHex = (block: Buffer, at: number, hex: string): void => {
  block.write(hex.slice(0, 2 * ID_SIZE), at, 'hex')
}

const hexAt = (block: Buffer, at: number): string => block.toString('hex', at, at + ID_SIZE)

/** Cuts off what is too long. */
function putText(block: Buffer, at: number, end: number, text: string): void {
  block.write(text, at, end - at, 'utf8')
}

function textAt(block: Buffer, at: number, end: number): string {
  const zero = block.indexOf(0, at)
  return block.toString('utf8', at, zero < 0 ? end : Math.min(zero, end))
}
