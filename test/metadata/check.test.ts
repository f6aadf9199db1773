/**
 * Goal: sound metadata has no problem, and no damage goes unseen. Method: images that the kernel,
 * thin_restore and a model of the kernel wrote; the same with one thing changed and the checksum
 * made right again; and random changes. thin_check says of each whether it sees the damage too.
 */
import { spawnSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { gunzipSync } from 'node:zlib'
import { crc32c } from '@node-rs/crc32'
import fc from 'fast-check'
import t from 'tap'
import type { Bytes } from '../../src/base/index.js'
import { checkMetadata, type MetadataReport } from '../../src/metadata/check/index.js'
import { MemoryStore } from '../support/memory-store.js'

const BLOCK = 4096
const SALTS = [160774, 121107, 240779, 160478]
const FIXTURES = join(import.meta.dirname, '../fixtures')
const EXPECTED = JSON.parse(readFileSync(`${FIXTURES}/dm-thin/expected.json`, 'utf8')) as Record<
  string,
  {
    actual_data_blocks_in_use: number
    actual_metadata_blocks_in_use: number
  }
>

const directory = mkdtempSync(join(tmpdir(), 'thinfs-check-'))
t.teardown(() => rmSync(directory, { recursive: true }))

/** A store that gives up when more is read than a few times what there is. */
class BoundedStore extends MemoryStore {
  #readsLeft = 0
  limitReads(): void {
    this.#readsLeft = 4 * (this.size / BLOCK) + 100
  }
  override read(buffer: Uint8Array, at: number, length: number, offset: Bytes): void {
    if (this.#readsLeft-- === 0) throw new Error('the checker reads without end')
    super.read(buffer, at, length, offset)
  }
}

/** Metadata with the fields that tests change, by the offsets of the format's description. */
class Image {
  readonly store: BoundedStore
  readonly buffer: Buffer
  constructor(name: string) {
    const image = gunzipSync(readFileSync(`${FIXTURES}/${name}`))
    this.store = new BoundedStore(image.length, { image })
    this.buffer = this.store.image
  }
  check(): MetadataReport {
    this.store.limitReads()
    return checkMetadata(this.store)
  }
  u64(block: number, at: number): number {
    return Number(this.buffer.readBigUInt64LE(block * BLOCK + at))
  }
  get mappingRoot(): number {
    return this.u64(0, 320)
  }
  get detailsRoot(): number {
    return this.u64(0, 328)
  }
  get heldRoot(): number {
    return this.u64(0, 56)
  }
  get dataIndexRoot(): number {
    return this.u64(0, 80)
  }
  get dataOverflowRoot(): number {
    return this.u64(0, 88)
  }
  get indexBlock(): number {
    return this.u64(0, 208)
  }
  /** Value `i` of a node with values of 8 bytes: a child or the root of a device. */
  child(node: number, i: number): number {
    return this.u64(node, 2048 + 8 * i)
  }
  /** The first bitmap of the data map, whose index entries are values of 16 bytes. */
  get dataBitmap(): number {
    return this.u64(this.dataIndexRoot, 1376)
  }
  /** Changes a block and makes its checksum right for its kind again. */
  edit(block: number, change: (bytes: Buffer) => void): void {
    const bytes = this.buffer.subarray(block * BLOCK, (block + 1) * BLOCK)
    const salt = SALTS.find(s => checksum(bytes, s) === bytes.readUInt32LE(0))
    change(bytes)
    if (salt !== undefined) bytes.writeUInt32LE(checksum(bytes, salt), 0)
  }
  setU64(block: number, at: number, value: number | bigint): void {
    this.edit(block, bytes => bytes.writeBigUInt64LE(BigInt(value), at))
  }
  setU32(block: number, at: number, value: number): void {
    this.edit(block, bytes => bytes.writeUInt32LE(value, at))
  }
  setCount(bitmap: number, entry: number, raw: number): void {
    this.edit(bitmap, bytes => {
      const at = 16 + Math.floor(entry / 4)
      const shift = 2 * (entry % 4)
      bytes[at] = (bytes[at]! & ~(3 << shift)) | (raw << shift)
    })
  }
  /** Puts an internal node with these entries into a block that was free. */
  makeInternal(block: number, entries: [key: number, child: number][]): void {
    const bytes = this.buffer.subarray(block * BLOCK, (block + 1) * BLOCK)
    bytes.fill(0)
    bytes.writeUInt32LE(1, 4)
    bytes.writeUInt32LE(block, 8)
    bytes.writeUInt32LE(entries.length, 16)
    bytes.writeUInt32LE(252, 20)
    bytes.writeUInt32LE(8, 24)
    for (const [i, [key, child]] of entries.entries()) {
      bytes.writeUInt32LE(key, 32 + 8 * i)
      bytes.writeUInt32LE(child, 2048 + 8 * i)
    }
    bytes.writeUInt32LE(checksum(bytes, 121107), 0)
  }
}

const checksum = (bytes: Buffer, salt: number) => (~crc32c(bytes.subarray(4)) ^ salt) >>> 0

/** thin_check's verdict; one that it does not reach in time is a rejection. */
function thinCheckPasses(buffer: Buffer): boolean {
  const file = join(directory, 'metadata')
  writeFileSync(file, buffer)
  return (
    spawnSync('thin_check', ['-q', file], { timeout: 20_000, killSignal: 'SIGKILL' }).status === 0
  )
}

const lines = (report: MetadataReport) => report.problems.map(p => `${p.severity}: ${p.message}`)

t.test('sound metadata has no problem, and its blocks are counted', async t => {
  for (const [name, expected] of Object.entries(EXPECTED)) {
    if (name.startsWith('corrupt-')) continue
    // What thin_dump printed: all devices with the mappings that it found.
    const dump = readFileSync(`${FIXTURES}/dm-thin/${name}.xml`, 'utf8')
    const mapped = [...dump.matchAll(/mapped_blocks="(\d+)"/g)].map(match => Number(match[1]))
    const devices = [...dump.matchAll(/dev_id="(\d+)"/g)].map(match => Number(match[1]))
    const numberOf = (field: string) => Number(new RegExp(`${field}="(\\d+)"`).exec(dump)![1])
    t.same(
      new Image(`dm-thin/${name}.meta.gz`).check(),
      {
        problems: [],
        transactionId: numberOf('transaction'),
        uuid: null,
        devices,
        dataSize: numberOf('nr_data_blocks') * numberOf('data_block_size') * 512,
        mappedBlocks: mapped.reduce((sum, n) => sum + n, 0),
        usedDataBlocks: expected.actual_data_blocks_in_use,
        usedMetadataBlocks: expected.actual_metadata_blocks_in_use,
      },
      name,
    )
  }
})

t.test('metadata that the kernel wrote has no problem', async t => {
  const manifest = JSON.parse(readFileSync(`${FIXTURES}/kernel-pool/manifest.json`, 'utf8'))
  const sectors: number[] = manifest.thins.map(
    (thin: { mapped_sectors: number }) => thin.mapped_sectors,
  )
  t.same(new Image('kernel-pool/meta.img.gz').check(), {
    problems: [],
    transactionId: manifest.transaction_id,
    uuid: null,
    devices: manifest.device_ids,
    dataSize: manifest.data.bytes,
    mappedBlocks: sectors.reduce((sum, n) => sum + n, 0) / manifest.data_block_sectors,
    // Both as its status line says; the kernel adds a reserve of 102 metadata blocks.
    usedDataBlocks: 499,
    usedMetadataBlocks: 122 - 102,
  })
})

interface Damage {
  name: string
  /** Fixture to damage: of those with two devices and two levels unless another is named. */
  of?: string
  damage: (image: Image) => void
  /** A line that must be among the problems. */
  found: RegExp
  /** Set where thin_check 0.9 does not see it. */
  thinCheckPasses?: true
}

const noDamage = () => {}
const DAMAGES: Damage[] = [
  // Damaged by others
  {
    name: 'superblock checksum',
    of: 'corrupt-superblock-csum',
    damage: noDamage,
    found: /^error: superblock: checksum is 658012659, wanted 3814472599$/,
  },
  {
    name: 'node checksum',
    of: 'corrupt-node-csum',
    damage: noDamage,
    found: /^error: mapping tree of device 1: node 10: checksum is \d+, wanted \d+$/,
  },
  {
    name: 'metadata leak',
    of: 'corrupt-metadata-leak',
    damage: noDamage,
    found: /^warning: metadata block 500 has count 1, wanted 0 \(leak\)$/,
  },
  {
    name: 'metadata undercount',
    of: 'corrupt-metadata-undercount',
    damage: noDamage,
    found: /^error: metadata block 10 has count 0, wanted 1$/,
  },
  {
    name: 'unsorted keys',
    of: 'corrupt-unsorted-keys',
    damage: noDamage,
    found: /^error: mapping tree of device 1: node 10: key 6 is 7, wanted more than 8$/,
  },
  {
    name: 'underfull node',
    of: 'corrupt-underfull-node',
    damage: noDamage,
    found: /^warning: mapping tree of device 0: node 19: nr_entries is 83, wanted at least 84$/,
  },
  {
    name: 'data leak',
    of: 'corrupt-data-leak',
    damage: noDamage,
    found: /^warning: data block 900 has count 1, wanted 0 \(leak\)$/,
    thinCheckPasses: true,
  },
  {
    name: 'data undercount',
    of: 'corrupt-data-undercount',
    damage: noDamage,
    found: /^error: data block 7 has count 0, wanted 1$/,
    thinCheckPasses: true,
  },

  // Superblock
  {
    name: 'magic',
    damage: image => image.setU64(0, 32, 27022011),
    found: /^error: superblock: magic is 27022011, wanted 27022010$/,
    thinCheckPasses: true,
  },
  {
    name: 'version',
    damage: image => image.setU32(0, 40, 1),
    found: /^error: superblock: version is 1, wanted 2$/,
    thinCheckPasses: true,
  },
  {
    name: 'own location',
    damage: image => image.setU64(0, 8, 1),
    found: /^error: superblock: blocknr is 1, wanted 0$/,
    thinCheckPasses: true,
  },
  {
    name: 'data block size',
    damage: image => image.setU32(0, 336, 100),
    found: /^error: superblock: data_block_size is 100 sectors/,
    thinCheckPasses: true,
  },
  {
    name: 'unknown incompatible feature',
    damage: image => image.setU32(0, 360, 1),
    found: /^error: superblock: incompat_flags is 1, wanted 0$/,
    thinCheckPasses: true,
  },
  {
    name: 'allocated blocks of the metadata map',
    damage: image => image.setU64(0, 200, image.u64(0, 200) + 2),
    found: /^warning: superblock: nr_allocated of the metadata map is 20, wanted 18$/,
    thinCheckPasses: true,
  },
  {
    name: 'allocated blocks of the data map',
    damage: image => image.setU64(0, 72, 1601),
    found: /^warning: superblock: nr_allocated of the data map is 1601, wanted 1600$/,
    thinCheckPasses: true,
  },
  {
    name: 'metadata map larger than the metadata',
    damage: image => image.setU64(0, 192, 5000),
    found: /^error: the metadata map has 5000 blocks, wanted at most the 1024 there are$/,
    thinCheckPasses: true,
  },
  {
    name: 'data map larger than a mapping can say',
    damage: image => image.setU64(0, 64, 2n ** 63n),
    found: /^error: the data map has \d+ blocks, wanted at most 1099511627776$/,
    thinCheckPasses: true,
  },
  {
    name: 'root outside of the metadata',
    damage: image => image.setU64(0, 320, 2n ** 60n),
    found: /^error: top-level mapping tree: top-level node \d+ is wanted within 1 to 1023$/,
  },
  {
    name: 'root of another tree',
    damage: image => image.setU64(0, 328, image.mappingRoot),
    found: /^error: .* is a details node already, wanted a top-level node$/,
  },

  // Nodes
  {
    name: 'node at another location',
    damage: image => image.setU64(deviceRoot(image), 8, 900),
    found: /^error: mapping tree of device 1: node \d+: blocknr is 900, wanted \d+$/,
  },
  {
    name: 'child outside of the metadata',
    damage: image => image.setU64(deviceRoot(image), 2048, 1024),
    found: /^error: mapping tree of device 1: mapping node 1024 is wanted within 1 to 1023$/,
  },
  {
    name: 'child that is the superblock',
    damage: image => image.setU64(deviceRoot(image), 2048, 0),
    found: /^error: mapping tree of device 1: mapping node 0 is wanted within 1 to 1023$/,
  },
  {
    name: 'child that is its parent',
    damage: image => image.setU64(deviceRoot(image), 2048, deviceRoot(image)),
    found: /^error: mapping tree of device 1: node \d+ is below itself$/,
  },
  {
    name: 'child that is a bitmap',
    damage: image => image.setU64(deviceRoot(image), 2048, image.dataBitmap),
    found: /^error: .* block \d+ is a data bitmap already, wanted a mapping node$/,
  },
  {
    name: 'swapped children',
    damage: image => {
      const root = deviceRoot(image)
      const [a, b] = [image.child(root, 0), image.child(root, 1)]
      image.setU64(root, 2048, b)
      image.setU64(root, 2056, a)
    },
    found: /^error: .* child \d+ has keys \d+ to \d+, wanted 0 to below \d+$/,
  },
  {
    name: 'swapped keys of a parent',
    damage: image => {
      const root = deviceRoot(image)
      const [a, b] = [image.u64(root, 32), image.u64(root, 40)]
      image.setU64(root, 32, b)
      image.setU64(root, 40, a)
    },
    found: /^error: .* key 1 is 0, wanted more than \d+$/,
  },
  {
    name: 'parent key above its child',
    damage: image => image.setU64(deviceRoot(image), 40, image.u64(deviceRoot(image), 40) + 1),
    found: /^error: .* child \d+ has keys/,
  },
  {
    name: 'leaf one level lower than its siblings',
    damage: image => {
      const root = deviceRoot(image)
      image.makeInternal(900, [[0, image.child(root, 0)]])
      image.setU64(root, 2048, 900)
    },
    found: /^error: .* child \d+ has height 1, wanted 2 as its siblings$/,
  },
  {
    name: 'more levels than a tree can need',
    damage: image => {
      const leaf = image.child(deviceRoot(image), 0)
      for (let i = 0; i < 20; i++) image.makeInternal(900 + i, [[0, i < 19 ? 901 + i : leaf]])
      image.setU64(deviceRoot(image), 2048, 900)
    },
    found: /^error: .* node \d+ is at level 17, wanted at most 16$/,
  },
  {
    name: 'child without entries',
    damage: image => image.setU32(image.child(deviceRoot(image), 0), 16, 0),
    found: /^error: .* nr_entries is 0, wanted at least 1$/,
  },
  {
    name: 'more entries than room',
    damage: image => image.setU32(deviceRoot(image), 16, 253),
    found: /^error: .* nr_entries is 253, wanted at most 252$/,
  },
  {
    name: 'neither internal nor leaf',
    damage: image => image.setU32(image.child(deviceRoot(image), 0), 4, 3),
    found: /^error: .* flags is 3, wanted 1 or 2$/,
  },
  {
    name: 'size of values',
    damage: image => image.setU32(image.child(deviceRoot(image), 0), 24, 16),
    found: /^error: .* value_size is 16, wanted 8$/,
  },
  {
    name: 'capacity that is no multiple of 3',
    damage: image => image.setU32(image.child(deviceRoot(image), 0), 20, 253),
    found: /^error: .* max_entries is 253, wanted 252/,
  },
  {
    name: 'capacity that does not fit',
    damage: image => image.setU32(image.child(deviceRoot(image), 0), 20, 255),
    found: /^error: .* max_entries is 255, wanted 252/,
  },
  {
    name: 'device id of more than 24 bits',
    damage: image => image.setU64(image.detailsRoot, 40, 2 ** 24),
    found: /^error: details tree: .* the last key is 16777216, wanted one below 16777216$/,
    thinCheckPasses: true,
  },

  // Devices
  {
    name: 'device without details',
    damage: image => image.setU32(image.detailsRoot, 16, 1),
    found: /^error: device 2 is in the top-level tree, wanted details too$/,
    thinCheckPasses: true,
  },
  {
    name: 'device without mapping tree',
    damage: image => image.setU64(image.detailsRoot, 40, 5),
    found: /^error: device 5 has details, wanted a mapping tree too$/,
    thinCheckPasses: true,
  },
  {
    name: 'mapped blocks',
    damage: image => image.setU64(image.detailsRoot, 1040, 1599),
    found: /^error: device 1: mapped_blocks is 1599, wanted 1600$/,
    thinCheckPasses: true,
  },
  {
    name: 'creation time after the present',
    damage: image => image.setU32(image.detailsRoot, 1056, 2),
    found: /^error: device 1: creation_time is 2, wanted at most 1$/,
    thinCheckPasses: true,
  },
  {
    name: 'snapshot time after the present',
    damage: image => image.setU32(image.detailsRoot, 1060, 2),
    found: /^error: device 1: snapshotted_time is 2, wanted at most 1$/,
    thinCheckPasses: true,
  },
  {
    name: 'mapping time after the present',
    damage: image => image.setU64(image.child(deviceRoot(image), 0), 2048, 2),
    found: /^error: mapping tree of device 1: virtual block 0 has time 2, wanted at most 1$/,
    thinCheckPasses: true,
  },
  {
    name: 'data block beyond the map',
    damage: image => image.setU64(image.child(deviceRoot(image), 0), 2048, 16384n << 24n),
    found: /^error: .* virtual block 0 is mapped to data block 16384, wanted one below 16384$/,
    thinCheckPasses: true,
  },
  {
    name: 'data block mapped twice',
    damage: image => image.setU64(image.child(deviceRoot(image), 0), 2048, 1n << 24n),
    found: /^error: data block 1 has count 1, wanted 2$/,
    thinCheckPasses: true,
  },
  {
    name: 'damage in a tree that two devices share names both',
    damage: image => image.setU64(deviceRoot(image), 2048, 1024),
    found: /^error: device 2: some of the 1600 mapped blocks are in damaged nodes$/,
  },

  // Space maps
  {
    name: 'index block checksum',
    damage: image => {
      image.buffer[image.indexBlock * BLOCK + 100]! ^= 1
    },
    found: /^error: metadata index block \d+: checksum is/,
  },
  {
    name: 'metadata bitmap outside of the metadata',
    damage: image => image.setU64(image.indexBlock, 16, 1024),
    found: /^error: metadata index block \d+: metadata bitmap 1024 is wanted within 1 to 1023$/,
  },
  {
    name: 'data bitmap that is missing',
    damage: image => image.setU32(image.dataIndexRoot, 16, 1),
    found: /^error: data index tree: bitmaps 1 to 1 are missing$/,
  },
  {
    name: 'data bitmap named twice',
    damage: image => image.setU64(image.dataIndexRoot, 1392, image.dataBitmap),
    found: /^error: data index tree: data bitmap \d+ has more than one pointer, wanted one$/,
  },
  {
    name: 'count beyond the data map',
    of: 'one-thin',
    damage: image => image.setCount(image.dataBitmap, 1500, 2),
    found: /^warning: data bitmap \d+: entry 1500 lies beyond the map and is not 0$/,
    thinCheckPasses: true,
  },
  {
    name: 'run of leaked blocks is one problem',
    of: 'one-thin',
    damage: image => {
      for (let entry = 900; entry < 1000; entry++) image.setCount(image.dataBitmap, entry, 2)
    },
    found: /^warning: data blocks 900 to 999 have count 1, wanted 0 \(leak\)$/,
    thinCheckPasses: true,
  },
  {
    name: 'overflow entry below 3',
    of: 'snap-of-snap',
    damage: image => image.setU32(image.dataOverflowRoot, 2720, 2),
    found: /^error: data overflow tree: block \d+ has count 2, wanted 3 or more$/,
    thinCheckPasses: true,
  },
  {
    name: 'overflow entry that is missing',
    of: 'snap-of-snap',
    damage: image => image.setU32(image.dataOverflowRoot, 16, 91),
    found: /^error: data overflow tree: block \d+ has no entry, wanted its count$/,
    thinCheckPasses: true,
  },
  {
    name: 'overflow entry that the bitmap does not know',
    of: 'snap-of-snap',
    damage: image => image.setCount(image.dataBitmap, image.u64(image.dataOverflowRoot, 32), 2),
    found: /^error: data overflow tree: block \d+ has an entry, but not in its bitmap$/,
    thinCheckPasses: true,
  },

  // Metadata snapshot
  {
    name: 'metadata snapshot that is forgotten',
    of: 'cow-metadata-snap',
    damage: image => image.setU64(0, 56, 0),
    found: /^warning: metadata block 2 has count 1, wanted 0 \(leak\)$/,
  },
  {
    name: 'metadata snapshot that is no superblock',
    of: 'cow-metadata-snap',
    damage: image => image.setU64(0, 56, 1),
    found: /^error: metadata snapshot 1: checksum is \d+, wanted \d+$/,
  },
  {
    name: 'metadata snapshot with another count of mapped blocks',
    of: 'cow-metadata-snap',
    damage: image => {
      const details = image.u64(image.heldRoot, 328)
      image.setU64(details, 1040, 1)
    },
    found: /^error: device 0 of the metadata snapshot: mapped_blocks is 1, wanted \d+$/,
    thinCheckPasses: true,
  },
  {
    name: 'metadata snapshot from the future',
    of: 'cow-metadata-snap',
    damage: image => image.setU32(image.heldRoot, 44, 1000),
    found: /^error: metadata snapshot: time is 1000, wanted at most \d+$/,
    thinCheckPasses: true,
  },
]

function deviceRoot(image: Image): number {
  return image.child(image.mappingRoot, 0)
}

t.test('damage is found and named', async t => {
  for (const { name, of, damage, found, thinCheckPasses: passes } of DAMAGES) {
    const image = new Image(`dm-thin/${of ?? 'golden-replay-2'}.meta.gz`)
    damage(image)
    const problems = lines(image.check())
    t.ok(
      problems.some(line => found.test(line)),
      name,
      { problems, wanted: String(found) },
    )
    t.equal(thinCheckPasses(image.buffer), passes ?? false, `${name}: what thin_check says`)
  }
})

t.test('metadata that ends early or is not there is an error, not an exception', async t => {
  const { buffer } = new Image('dm-thin/golden-replay-2.meta.gz')
  const check = (image: Buffer) => lines(checkMetadata(new MemoryStore(image.length, { image })))
  t.same(check(Buffer.alloc(0)), ['error: superblock: the metadata ends at byte 0, before it'])
  t.same(check(Buffer.alloc(BLOCK)), ['error: superblock: checksum is 0, wanted 1490015127'])
  t.ok(check(buffer.subarray(0, 10 * BLOCK)).some(line => line.startsWith('error: ')))
})

t.test('a block that cannot be read is named', async t => {
  const { buffer, mappingRoot } = new Image('dm-thin/golden-replay-2.meta.gz')
  const store = new MemoryStore(buffer.length, { image: buffer })
  const read = store.read.bind(store)
  store.read = (target, at, length, offset) => {
    // As a store does it: past its end.
    read(target, at, length, (offset === mappingRoot * BLOCK ? store.size : offset) as Bytes)
  }
  const problems = lines(checkMetadata(store))
  t.ok(
    problems.some(line => line.startsWith(`error: top-level mapping tree: node ${mappingRoot}: `)),
  )
})

// Goal: hostile metadata costs no more than its size. Method: every node of 14 levels points 252
// times to the next, 252^14 ways in all; the store gives up after a few reads of each block.
t.test('many ways to the same nodes are not all walked', async t => {
  const image = new Image('dm-thin/golden-replay-2.meta.gz')
  for (let level = 0; level < 14; level++) {
    const below = level < 13 ? 901 + level : image.child(deviceRoot(image), 0)
    image.makeInternal(
      900 + level,
      Array.from({ length: 252 }, (_, i) => [i, below]),
    )
  }
  image.setU64(image.mappingRoot, 2048, 900)
  const report = image.check()
  t.ok(report.problems.some(p => p.severity === 'error'))
  t.ok(report.problems.length < 2100, 'the list of problems is bounded')
  t.ok(report.problems.some(p => /^\d+ more are not listed$/.test(p.message)))
})

t.test('a data map of 2^40 blocks without bitmaps is one problem', async t => {
  const image = new Image('dm-thin/empty-pool.meta.gz')
  image.setU64(0, 64, 2n ** 40n)
  t.same(lines(image.check()), ['error: data index tree: bitmaps 1 to 67372036 are missing'])
})

// Goal: whatever bits are wrong under right checksums, the checker ends with a report, and one with
// a problem where thin_check has one. Method: flips in the blocks in use of every kind.
t.test('random changes never confuse it, and it sees what thin_check sees', async () => {
  const names = ['golden-replay-2', 'snap-of-snap', 'cow-snapshots', 'cow-metadata-snap']
  const images = new Map(
    names.map(name => {
      const image = new Image(`dm-thin/${name}.meta.gz`)
      const { buffer } = image
      const blocks = Array.from({ length: buffer.length / BLOCK }, (_, i) => i)
      return [name, { image, used: blocks.filter(b => buffer.readUInt32LE(b * BLOCK) !== 0) }]
    }),
  )
  const flip = fc.record({
    block: fc.nat(),
    // Headers, first keys and first values more often than the rest.
    at: fc.oneof(
      fc.integer({ min: 4, max: 63 }),
      fc.constantFrom(1040, 1376, 2048, 2720).chain(at => fc.integer({ min: at, max: at + 40 })),
      fc.integer({ min: 4, max: BLOCK - 1 }),
    ),
    bit: fc.nat(7),
  })
  fc.assert(
    fc.property(
      fc.constantFrom(...names),
      fc.array(flip, { minLength: 1, maxLength: 3 }),
      (name, flips) => {
        const { image, used } = images.get(name)!
        const sound = Buffer.from(image.buffer)
        for (const { block, at, bit } of flips) {
          image.edit(used[block % used.length]!, bytes => {
            bytes[at]! ^= 1 << bit
          })
        }
        const clean = image.check().problems.length === 0
        const agreed = !clean || sound.equals(image.buffer) || thinCheckPasses(image.buffer)
        sound.copy(image.buffer)
        return agreed
      },
    ),
    { numRuns: 400 },
  )
})
