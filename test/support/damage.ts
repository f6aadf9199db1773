/**
 * Damage to metadata that its checksums do not tell: fields of every structure, by the offsets of
 * the format's description, with checksum and location made right again.
 */
import { crc32c } from '@node-rs/crc32'
import fc from 'fast-check'
import { METADATA_BLOCK_SIZE } from '../../src/base/index.js'
import {
  DEVICE_DETAILS,
  INDEX_ENTRY,
  NODE,
  SALT,
  SPACE_MAP_ROOT,
  SUPERBLOCK,
} from '../../src/metadata/format.js'

export type Kind = keyof typeof SALT
const KINDS = Object.keys(SALT) as Kind[]

/** One thing done to an image; numbers are taken modulo what there is. */
export type Damage =
  | { do: 'set'; block: number; field: number; value: Value }
  | { do: 'flip'; block: number; bit: number; resealed: boolean }
  | { do: 'copy'; from: number; to: number; resealed: boolean }
  | { do: 'fill'; block: number; byte: number; from: number; length: number }
  | { do: 'cycle'; first: number; second: number; shared: boolean }

/** What a field is set to. */
type Value =
  | { is: 'number'; value: bigint }
  | { is: 'block'; block: number }
  | { is: 'more'; by: number }

const INTERESTING = [
  0n,
  1n,
  2n,
  3n,
  4n,
  126n,
  127n,
  168n,
  252n,
  253n,
  336n,
  0xff_ffffn,
  0x100_0000n,
  0x7fff_ffffn,
  0xffff_ffffn,
  1n << 32n,
  (1n << 40n) - 1n,
  1n << 40n,
  (1n << 53n) - 2n,
  (1n << 53n) - 1n,
  1n << 53n,
  (1n << 53n) + 2n,
  1n << 63n,
  (1n << 64n) - 2048n,
  (1n << 64n) - 1n,
]

const nat = fc.nat({ max: 0xffff_ffff })
const value: fc.Arbitrary<Value> = fc.oneof(
  { weight: 3, arbitrary: fc.record({ is: fc.constant('block'), block: nat } as const) },
  {
    weight: 3,
    arbitrary: fc.record({
      is: fc.constant('number'),
      value: fc.constantFrom(...INTERESTING),
    } as const),
  },
  {
    weight: 1,
    arbitrary: fc.record({
      is: fc.constant('number'),
      value: fc.bigInt({ min: 0n, max: (1n << 64n) - 1n }),
    } as const),
  },
  {
    weight: 2,
    arbitrary: fc.record({ is: fc.constant('more'), by: fc.integer({ min: -3, max: 3 }) } as const),
  },
)

export const damage: fc.Arbitrary<Damage> = fc.oneof(
  {
    weight: 12,
    arbitrary: fc.record({ do: fc.constant('set'), block: nat, field: nat, value } as const),
  },
  {
    weight: 2,
    arbitrary: fc.record({
      do: fc.constant('flip'),
      block: nat,
      bit: nat,
      resealed: fc.boolean(),
    } as const),
  },
  {
    weight: 2,
    arbitrary: fc.record({
      do: fc.constant('copy'),
      from: nat,
      to: nat,
      resealed: fc.boolean(),
    } as const),
  },
  {
    weight: 2,
    arbitrary: fc.record({
      do: fc.constant('fill'),
      block: nat,
      byte: fc.constantFrom(0, 0xaa, 0x55, 0xff),
      from: nat,
      length: nat,
    } as const),
  },
  {
    weight: 1,
    arbitrary: fc.record({
      do: fc.constant('cycle'),
      first: nat,
      second: nat,
      shared: fc.boolean(),
    } as const),
  },
)

/** The blocks of a sound image that are in use, by kind. */
export class Target {
  readonly blocks: { nr: number; kind: Kind }[] = []
  readonly #image: Buffer

  constructor(image: Buffer) {
    this.#image = image
    const index = Number(image.readBigUInt64LE(SUPERBLOCK.at.metadataSpaceMap + 16))
    const bitmap = blockOf(image, Number(blockOf(image, index).readBigUInt64LE(16)))
    for (let nr = 0; nr * METADATA_BLOCK_SIZE < image.length; nr++) {
      const used = (bitmap[16 + (nr >> 2)]! >> (2 * (nr & 3))) & 3
      const kind = used ? kindOf(blockOf(image, nr)) : undefined
      if (kind) this.blocks.push({ nr, kind })
    }
  }

  /** A copy of the image with the damage done to it. */
  damaged(all: readonly Damage[]): Buffer {
    const image = Buffer.from(this.#image)
    for (const one of all) this.#apply(image, one)
    return image
  }

  #pick(n: number): { nr: number; kind: Kind } {
    return this.blocks[n % this.blocks.length]!
  }

  #apply(image: Buffer, one: Damage): void {
    switch (one.do) {
      case 'set': {
        const { nr, kind } = this.#pick(one.block)
        const block = blockOf(image, nr)
        const fields = fieldsOf(block, kind)
        const { at, size } = fields[one.field % fields.length]!
        set(block, at, size, this.#value(one.value, block, at, size))
        seal(block, kind)
        break
      }
      case 'flip': {
        const { nr, kind } = this.#pick(one.block)
        const block = blockOf(image, nr)
        const bit = one.bit % (8 * METADATA_BLOCK_SIZE)
        block[bit >>> 3]! ^= 1 << (bit & 7)
        if (one.resealed) seal(block, kind)
        break
      }
      case 'copy': {
        const from = this.#pick(one.from)
        const to = this.#pick(one.to)
        const block = blockOf(image, to.nr)
        blockOf(image, from.nr).copy(block)
        if (!one.resealed) break
        block.writeBigUInt64LE(BigInt(to.nr), 8)
        seal(block, from.kind)
        break
      }
      case 'fill': {
        const { nr, kind } = this.#pick(one.block)
        const block = blockOf(image, nr)
        const from = 16 + (one.from % 512)
        block.fill(one.byte, from, from + 1 + (one.length % 64))
        seal(block, kind)
        break
      }
      case 'cycle':
        this.#cycle(image, one)
    }
  }

  /** Makes two nodes of one entry each the only child of the other, and many owners' if wanted. */
  #cycle(image: Buffer, { first, second, shared }: Damage & { do: 'cycle' }): void {
    const nodes = this.blocks.filter(({ kind }) => kind === 'node')
    const pair = [nodes[first % nodes.length]!.nr, nodes[second % nodes.length]!.nr] as const
    for (const [nr, child] of [pair, [pair[1], pair[0]]] as const) {
      const block = blockOf(image, nr)
      block.writeUInt32LE(1, NODE.at.flags)
      block.writeUInt32LE(1, NODE.at.nrEntries)
      block.writeUInt32LE(252, NODE.at.maxEntries)
      block.writeUInt32LE(8, NODE.at.valueSize)
      block.writeBigUInt64LE(BigInt(child), NODE.size + 252 * 8)
      seal(block, 'node')
    }
    if (!shared) return
    // Everything in use has two owners.
    for (const { nr, kind } of this.blocks) {
      if (kind !== 'bitmap') continue
      const block = blockOf(image, nr)
      for (let at = 16; at < METADATA_BLOCK_SIZE; at++) {
        if (block[at] === 0xaa) block[at] = 0x55
      }
      seal(block, kind)
    }
  }

  #value(value: Value, block: Buffer, at: number, size: number): bigint {
    if (value.is === 'number') return value.value
    if (value.is === 'block') return BigInt(this.#pick(value.block).nr)
    const old = size === 8 ? block.readBigUInt64LE(at) : BigInt(block.readUInt32LE(at))
    return old + BigInt(value.by)
  }
}

const blockOf = (image: Buffer, nr: number): Buffer =>
  image.subarray(nr * METADATA_BLOCK_SIZE, (nr + 1) * METADATA_BLOCK_SIZE)

const checksumOf = (block: Buffer, kind: Kind): number =>
  (~crc32c(block.subarray(4)) ^ SALT[kind]) >>> 0

const kindOf = (block: Buffer): Kind | undefined =>
  KINDS.find(kind => checksumOf(block, kind) === block.readUInt32LE(0))

function seal(block: Buffer, kind: Kind): void {
  block.writeUInt32LE(checksumOf(block, kind), 0)
}

function set(block: Buffer, at: number, size: number, value: bigint): void {
  if (size === 8) block.writeBigUInt64LE(BigInt.asUintN(64, value), at)
  else block.writeUInt32LE(Number(BigInt.asUintN(32, value)), at)
}

type Place = { at: number; size: number }

/** Where numbers stand in a block: the header's, and those of its entries that are in use. */
function fieldsOf(block: Buffer, kind: Kind): Place[] {
  if (kind === 'superblock') {
    return [
      ...placesOf(SUPERBLOCK, 0),
      ...placesOf(SPACE_MAP_ROOT, SUPERBLOCK.at.dataSpaceMap),
      ...placesOf(SPACE_MAP_ROOT, SUPERBLOCK.at.metadataSpaceMap),
    ]
  }
  if (kind === 'index') return placesOf(INDEX_ENTRY, 16)
  if (kind === 'bitmap') {
    const words = Array.from({ length: METADATA_BLOCK_SIZE / 4 }, (_, i) => ({
      at: 4 * i,
      size: 4,
    }))
    return words.filter(({ at }) => at === 8 || (at >= 16 && block.readUInt32LE(at) !== 0))
  }
  const places = placesOf(NODE, 0)
  // An earlier damage may have set it to anything.
  const nr = Math.min(block.readUInt32LE(NODE.at.nrEntries), METADATA_BLOCK_SIZE / 8)
  const max = block.readUInt32LE(NODE.at.maxEntries)
  const size = block.readUInt32LE(NODE.at.valueSize)
  for (let i = 0; i < nr; i++) {
    places.push({ at: NODE.size + 8 * i, size: 8 })
    const value = NODE.size + 8 * max + size * i
    if (size === DEVICE_DETAILS.size) places.push(...placesOf(DEVICE_DETAILS, value))
    else if (size === INDEX_ENTRY.size) places.push(...placesOf(INDEX_ENTRY, value))
    else places.push({ at: value, size })
  }
  return places.filter(({ at, size }) => at + size <= METADATA_BLOCK_SIZE)
}

/** The number fields of a structure at byte `base`, but for the checksum. */
function placesOf(
  layout: { fields: Readonly<Record<string, readonly [number, string, string]>> },
  base: number,
): Place[] {
  return Object.entries(layout.fields)
    .filter(([name, [, type]]) => name !== 'csum' && (type === 'u32' || type === 'u64'))
    .map(([, [offset, type]]) => ({ at: base + offset, size: type === 'u64' ? 8 : 4 }))
}
