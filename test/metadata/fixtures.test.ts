/** Images that other programs wrote, and what other programs make of ours. */
import { crc32c } from '@node-rs/crc32'
import t from 'tap'
import { bytes, type DataBlock, type DevId, writeU64 } from '../../src/base/index.js'
import { checksum } from '../../src/metadata/blocks/checksum.js'
import { checkMetadata, SALT, ThinMetadata } from '../../src/metadata/index.js'
import { MemoryStore } from '../support/memory-store.js'
import {
  fixture,
  fixtureFacts,
  fixtureXml,
  parseDump,
  type ThinDump,
  thinCheck,
  thinDump,
  thinDumpXml,
  thinRestore,
} from '../support/thin-tools.js'

const FACTS = fixtureFacts()
const GOOD = Object.keys(FACTS).filter(name => !name.startsWith('corrupt-'))
const ALL = Number.POSITIVE_INFINITY

const storeOf = (image: Buffer): MemoryStore => new MemoryStore(image.length, { image })
const open = (name: string): ThinMetadata => ThinMetadata.open(storeOf(fixture(name)))

async function commit(metadata: ThinMetadata): Promise<void> {
  const sealed = metadata.seal()
  if (sealed === null) return
  await sealed.write()
  sealed.end()
  metadata.releaseData(sealed.freed)
}

/** All that the engine knows of devices and mappings, in the form of a dump. */
function dumpOf(metadata: ThinMetadata): ThinDump {
  const devices: ThinDump['devices'] = new Map()
  for (const devId of metadata.deviceIds()) {
    const { mappedBlocks, transactionId, creationTime, snapshottedTime } = metadata.details(devId)
    const mappings = new Map<number, { dataBlock: number; time: number }>()
    metadata.mappings.forEach(devId, 0, ALL, (vblock, dataBlock, time) => {
      mappings.set(vblock, { dataBlock, time })
    })
    devices.set(devId, {
      mappedBlocks,
      transaction: transactionId,
      creationTime,
      snapTime: snapshottedTime,
      mappings,
    })
  }
  return {
    time: metadata.time,
    transaction: metadata.transactionId,
    dataBlockSize: metadata.dataBlockSectors,
    nrDataBlocks: metadata.nrDataBlocks,
    devices,
  }
}

/** How many data blocks have each count; free ones are left out. */
function histogram(metadata: ThinMetadata): Record<string, number> {
  const counts: Record<string, number> = {}
  for (let block = 0; block < metadata.nrDataBlocks; block++) {
    const count = metadata.dataCount(block as DataBlock)
    if (count > 0) counts[count] = (counts[count] ?? 0) + 1
  }
  return counts
}

/** Large maps are compared as text: a difference in them would be printed at length. */
const text = (dump: ThinDump): string =>
  JSON.stringify(dump, (_, value) => (value instanceof Map ? [...value] : value))

t.test('checksums: vectors that were published, or taken from blocks of a kernel', async t => {
  t.equal(crc32c('123456789'), 0xe3069283)
  t.equal(checksum(Buffer.alloc(4096), SALT.superblock), 1490015127)
  const image = fixture('fresh-format')
  const block = (nr: number): Buffer => image.subarray(nr * 4096, (nr + 1) * 4096)
  t.equal(checksum(block(0), SALT.superblock), 0xcaff9186)
  t.equal(checksum(block(1), SALT.index), 0x18e0660a)
  t.equal(checksum(block(3), SALT.bitmap), 0xa19f6375)
  t.equal(checksum(block(6), SALT.node), 0xcb3dda35)
  t.equal(
    block(6).subarray(0, 32).toString('hex'),
    [
      '35da3dcb',
      '02000000',
      '0600000000000000',
      '00000000',
      'fc000000',
      '08000000',
      '00000000',
    ].join(''),
    'csum, flags, blockNr, nrEntries, maxEntries, valueSize, padding of an empty node',
  )
})

for (const name of GOOD) {
  t.test(`${name}: devices, mappings and counts are what is said of it`, async t => {
    const facts = FACTS[name]!
    const metadata = open(name)
    t.equal(text(dumpOf(metadata)) === text(parseDump(fixtureXml(name))), true, 'as thin_dump says')
    t.same(histogram(metadata), facts.data_count_histogram, 'counts of data blocks')
    t.equal(metadata.nrDataBlocks, facts.data_sm.nr_blocks)
    t.equal(metadata.nrAllocatedDataBlocks, facts.data_sm.nr_allocated)
    t.equal(metadata.nrMetadataBlocks, facts.metadata_sm.nr_blocks)
    t.equal(metadata.nrAllocatedMetadataBlocks, facts.metadata_sm.nr_allocated)
    t.equal(metadata.heldRoot, facts.superblock.held_root)
    t.equal(metadata.needsCheck, (facts.superblock.flags & 1) === 1)
    t.equal(metadata.changed, false)
    t.equal(metadata.seal(), null, 'and looking changes nothing')
  })

  t.test(`${name}: emptied, refilled and handed back`, async t => {
    const store = storeOf(fixture(name))
    const metadata = ThinMetadata.open(store, { cacheBlocks: 16 })
    const ids = [...metadata.deviceIds()]
    if (metadata.nrDataBlocks === 0) metadata.growData(100)
    for (const id of ids) metadata.deleteDevice(id)
    if (metadata.heldRoot !== 0) metadata.releaseMetadataSnap()
    t.equal(metadata.nrAllocatedDataBlocks, 0, 'nothing is left in the data map')
    await commit(metadata)
    t.same(checkMetadata(store).problems, [])
    metadata.createThin(7 as DevId)
    let filled = 0
    for (; filled < 20_000 && metadata.nrAllocatableDataBlocks > 0; filled++) {
      metadata.mappings.insert(
        7 as DevId,
        filled,
        metadata.allocateData() as DataBlock,
        metadata.time,
      )
    }
    await commit(metadata)
    t.same(checkMetadata(store).problems, [])
    t.equal(thinCheck(store.image).status, 0, 'thin_check')
    t.equal(thinDump(store.image).devices.get(7)?.mappings.size, filled)
  })
}

t.test('what thin_restore makes of our dump holds the same', async t => {
  for (const name of ['cow-grown', 'golden-replay-2', 'many-devs']) {
    const store = storeOf(fixture(name))
    const metadata = ThinMetadata.open(store)
    metadata.createThin(9999 as DevId)
    metadata.mappings.insert(
      9999 as DevId,
      2 ** 33,
      metadata.allocateData() as DataBlock,
      metadata.time,
    )
    metadata.mappings.removeRange([...metadata.deviceIds()][0]!, 5, 900)
    await commit(metadata)
    const restored = thinRestore(thinDumpXml(store.image), 16 << 20)
    const again = ThinMetadata.open(storeOf(restored))
    t.equal(text(dumpOf(again)) === text(dumpOf(metadata)), true, name)
    again.createSnap(9998 as DevId, 9999 as DevId)
    again.mappings.insert(9998 as DevId, 1, again.allocateData() as DataBlock, again.time)
    await commit(again)
  }
})

/** The operations that the README of the fixtures lists, each list on top of the one before. */
class Cow {
  readonly store = new MemoryStore(2048 * 4096)
  metadata: ThinMetadata
  readonly #mapping = { dataBlock: 0 as DataBlock, time: 0 }

  constructor() {
    this.store.write(fixture('fresh-resumed'), 0, 1024 * 4096, bytes(0))
    this.metadata = ThinMetadata.open(this.store)
  }

  write(id: number, ...vblocks: number[]): void {
    const { metadata } = this
    for (const vblock of vblocks) {
      const mapped = metadata.mappings.find(id as DevId, vblock, this.#mapping)
      const { snapshottedTime } = metadata.details(id as DevId)
      if (mapped && this.#mapping.time >= snapshottedTime) continue
      metadata.mappings.insert(
        id as DevId,
        vblock,
        metadata.allocateData() as DataBlock,
        metadata.time,
      )
    }
  }

  async snapshots(): Promise<void> {
    const { metadata } = this
    const step = async (change: () => void): Promise<void> => {
      change()
      await commit(metadata)
    }
    await step(() => metadata.growData(4096))
    await step(() => metadata.createThin(0 as DevId))
    await step(() => this.write(0, ...Array(1600).keys()))
    for (let k = 1; k <= 5; k++) {
      await step(() => metadata.createSnap(k as DevId, 0 as DevId))
      await step(() => metadata.setTransactionId(k - 1, k))
      await step(() => {
        this.write(0, 10 * k, 10 * k + 1, 10 * k + 2)
        this.write(k, 1000 + k)
      })
    }
    await step(() => metadata.createSnap(6 as DevId, 3 as DevId))
    await step(() => this.write(6, 5000, 31))
    await step(() => metadata.mappings.removeRange(5 as DevId, 0, 800))
    await step(() => metadata.deleteDevice(2 as DevId))
  }

  async metadataSnap(): Promise<void> {
    this.metadata = ThinMetadata.open(this.store)
    const { metadata } = this
    metadata.reserveMetadataSnap()
    await commit(metadata)
    this.write(0, ...Array.from({ length: 16 }, (_, i) => i * 100))
    await commit(metadata)
    metadata.deleteDevice(1 as DevId)
    await commit(metadata)
    metadata.createThin(9 as DevId)
    await commit(metadata)
    this.write(9, 3)
    await commit(metadata)
  }

  async grown(): Promise<void> {
    this.metadata = ThinMetadata.open(this.store)
    const { metadata } = this
    metadata.releaseMetadataSnap()
    await commit(metadata)
    metadata.growMetadata(2048)
    await commit(metadata)
    metadata.growData(20_000)
    await commit(metadata)
    this.write(4, ...Array.from({ length: 600 }, (_, i) => 10_000 + i))
    await commit(metadata)
  }
}

t.test('the cow fixtures: the same operations give the same content and counts', async t => {
  const cow = new Cow()
  for (const [name, run] of [
    ['cow-snapshots', () => cow.snapshots()],
    ['cow-metadata-snap', () => cow.metadataSnap()],
    ['cow-grown', () => cow.grown()],
  ] as const) {
    await run()
    const { metadata } = cow
    const facts = FACTS[name]!
    t.equal(text(dumpOf(metadata)) === text(parseDump(fixtureXml(name))), true, `${name}: content`)
    t.same(histogram(metadata), facts.data_count_histogram, `${name}: counts of data blocks`)
    t.equal(metadata.nrAllocatedDataBlocks, facts.actual_data_blocks_in_use)
    t.equal(metadata.nrMetadataBlocks, facts.metadata_sm.nr_blocks)
    t.same(checkMetadata(cow.store).problems, [], `${name}: all counts are right`)
    t.equal(thinCheck(cow.store.image).status, 0, `${name}: thin_check`)
    if (facts.superblock.held_root === 0) continue
    const held = parseDump(fixtureXml(`${name}.held`))
    t.equal(text(thinDump(cow.store.image, '-m')) === text(held), true, `${name}: held content`)
  }
})

/** An image with fields of one block changed, and the checksum made right again. */
function damaged(name: string, nr: number, salt: number, change: (view: DataView) => void): Buffer {
  const image = fixture(name)
  const block = image.subarray(nr * 4096, (nr + 1) * 4096)
  const view = new DataView(block.buffer, block.byteOffset, 4096)
  change(view)
  view.setUint32(0, checksum(block, salt), true)
  return image
}

t.test('what cannot be right is refused, naming block, found and wanted', async t => {
  const corrupt = (message: RegExp) => ({ code: 'METADATA_CORRUPT', message })
  const superblock = (change: (view: DataView) => void): Buffer =>
    damaged('one-thin', 0, SALT.superblock, change)
  const leaf = (change: (view: DataView) => void): Buffer =>
    damaged('one-thin', 10, SALT.node, change)
  const out = { dataBlock: 0 as DataBlock, time: 0 }
  const look = (image: Buffer): void => {
    ThinMetadata.open(storeOf(image)).mappings.find(1 as DevId, 0, out)
  }

  t.throws(() => look(Buffer.alloc(4096 * 8)), corrupt(/block 0: superblock: magic is 0, wanted/))
  t.throws(() => look(Buffer.alloc(100)), corrupt(/100 bytes/))
  t.throws(
    () => look(fixture('corrupt-superblock-csum')),
    corrupt(/block 0: superblock: checksum is 0x[0-9a-f]+, computed 0xe35c3b97/),
    'computed is what thin_check calls wanted: 3814472599',
  )
  t.throws(() => look(superblock(v => v.setUint32(40, 3, true))), {
    code: 'METADATA_UNSUPPORTED',
    message: /version is 3, wanted 2/,
  })
  for (const at of [356, 360]) {
    t.throws(() => look(superblock(v => v.setUint32(at, 4, true))), {
      code: 'METADATA_UNSUPPORTED',
    })
  }
  t.throws(() => look(superblock(v => v.setUint32(8, 5, true))), corrupt(/says that it is block 5/))
  t.throws(
    () => look(superblock(v => v.setUint32(192, 9999, true))),
    corrupt(/9999 metadata blocks/),
  )
  t.throws(() => look(superblock(v => v.setUint32(336, 100, true))), corrupt(/100 sectors/))
  t.throws(
    () => look(superblock(v => v.setUint32(320, 10_000_000, true))),
    corrupt(/mappingRoot is block 10000000, wanted one from 1 to /),
  )
  t.throws(() => look(fixture('corrupt-node-csum')), corrupt(/block 10: .*checksum is 0x/))
  t.throws(() => look(fixture('corrupt-unsorted-keys')), corrupt(/block 10: .*key 7 follows 8/))
  t.throws(() => look(leaf(v => v.setUint32(4, 3, true))), corrupt(/flags are 3/))
  t.throws(() => look(leaf(v => v.setUint32(16, 253, true))), corrupt(/253 entries, .*at most 252/))
  t.throws(() => look(leaf(v => v.setUint32(20, 255, true))), corrupt(/255 entries, wanted 252/))
  t.throws(() => look(leaf(v => v.setUint32(24, 16, true))), corrupt(/value size is 16, wanted 8/))
  t.throws(() => look(leaf(v => v.setUint32(8, 11, true))), corrupt(/block 10: .*is block 11/))
})

t.test('counts that are too low are found when an owner goes', async t => {
  const metadata = open('corrupt-data-undercount')
  t.throws(() => metadata.mappings.removeRange(1 as DevId, 0, ALL), {
    code: 'METADATA_CORRUPT',
    message: /data block 7 has no owner/,
  })
  const other = open('corrupt-metadata-undercount')
  t.throws(() => other.deleteDevice(1 as DevId), {
    code: 'METADATA_CORRUPT',
    message: /metadata block 10 has no owner/,
  })
})

t.test('trees that are no trees end in an error', async t => {
  // The root points 252 times to itself.
  const cycle = damaged('one-thin', 10, SALT.node, view => {
    view.setUint32(4, 1, true)
    view.setUint32(16, 252, true)
    for (let i = 0; i < 252; i++) {
      writeU64(view, 32 + i * 8, i)
      writeU64(view, 2048 + i * 8, 10)
    }
  })
  const out = { dataBlock: 0 as DataBlock, time: 0 }
  const id = 1 as DevId
  const uses: ((metadata: ThinMetadata) => unknown)[] = [
    m => m.mappings.find(id, 5, out),
    m => m.mappings.next(id, 5, out),
    m => m.mappings.highestMapped(id),
    m => m.mappings.forEach(id, 0, ALL, () => {}),
    m => m.mappings.forEachExclusive(id, 0, () => {}),
    m => m.mappings.mappedUntil(id, 5, ALL),
    m => m.mappings.isReallyShared(id, 5),
    m => m.mappings.insert(id, 5, m.allocateData() as DataBlock, m.time),
    m => m.mappings.removeRange(id, 5, 9),
    m => m.mappings.removeRange(id, 0, ALL),
    m => m.mappings.sliceBegin(id, 100_000),
    m => m.deleteDevice(id),
  ]
  for (const use of uses) {
    t.throws(() => use(ThinMetadata.open(storeOf(cycle))), { code: 'METADATA_CORRUPT' }, `${use}`)
  }
})
