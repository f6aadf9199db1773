// Goal: a lookup table says what the mappings say, whatever was looked up, changed and pushed out
// before. Method: random operations on tables that share a few pages, and on plain maps, which are
// also what the tables are filled from; and a real pool with a leaf that is corrupt.
import fc from 'fast-check'
import t from 'tap'
import {
  bytes,
  type DataBlock,
  type DevId,
  METADATA_BLOCK_SIZE,
  readU64,
} from '../../src/base/index.js'
import {
  dataBlockOf,
  isShared,
  LookupTable,
  type MappingSource,
  UNMAPPED,
} from '../../src/device/lookup-table.js'
import { PAGE_ENTRIES, PageCache } from '../../src/device/page-cache.js'
import { NODE, NODE_LEAF } from '../../src/metadata/format.js'
import { devId, formatted, openFiles } from '../support/memory-pool.js'

const PAGES = 4
const CACHE_SIZE = PAGES * PAGE_ENTRIES * 4
const DEVICES = 3
const VBLOCKS = 3 * PAGES * PAGE_ENTRIES
/** The largest data block for which entries take four bytes. */
const NARROW_MAX = 2 ** 31 - 2
const BLOCK_MAX = 2 ** 40 - 1

/** Devices as plain maps. */
class Model implements MappingSource {
  time = 0
  /** How often mappings were asked for. */
  nrWalks = 0
  readonly devices = Array.from({ length: DEVICES }, () => ({
    snapshottedTime: 0,
    mappings: new Map<number, { dataBlock: number; time: number }>(),
  }))

  details(id: DevId): ReturnType<MappingSource['details']> {
    const { snapshottedTime, mappings } = this.devices[id]!
    return { mappedBlocks: mappings.size, transactionId: 0, creationTime: 0, snapshottedTime }
  }

  readonly mappings: MappingSource['mappings'] = {
    forEach: (id, begin, end, visit) => {
      this.nrWalks++
      for (let vblock = begin; vblock < end; vblock++) {
        const mapping = this.devices[id]!.mappings.get(vblock)
        if (mapping) visit(vblock, mapping.dataBlock as DataBlock, mapping.time)
      }
    },
  }

  /** What a table should say, in words. */
  wanted(id: number, vblock: number): string {
    const { snapshottedTime, mappings } = this.devices[id]!
    const mapping = mappings.get(vblock)
    if (!mapping) return 'unmapped'
    return `${mapping.dataBlock}${snapshottedTime > mapping.time ? ', shared' : ''}`
  }
}

const found = (table: LookupTable, vblock: number): string => {
  const entry = table.get(vblock)
  if (entry === UNMAPPED) return 'unmapped'
  return `${dataBlockOf(entry)}${isShared(entry) ? ', shared' : ''}`
}

const step = fc.record({
  kind: fc.constantFrom('get', 'get', 'get', 'map', 'map', 'share', 'unmap', 'snap'),
  device: fc.nat(DEVICES - 1),
  vblock: fc.nat(VBLOCKS - 1),
  length: fc.oneof(fc.nat(3), fc.nat(VBLOCKS), fc.constant(Number.POSITIVE_INFINITY)),
  part: fc.double({ min: 0, max: 1, noNaN: true }),
})

/** @param blockMax the largest data block there is */
function agrees(blockMax: number): void {
  fc.assert(
    fc.property(fc.array(step, { minLength: 50, maxLength: 200 }), steps => {
      const model = new Model()
      const pages = new PageCache(CACHE_SIZE)
      const tables = model.devices.map((_, id) => new LookupTable(model, devId(id), pages))
      for (const { kind, device, vblock, length, part } of steps) {
        const { mappings } = model.devices[device]!
        const table = tables[device]!
        const dataBlock = Math.round(part * blockMax)
        if (kind === 'map') {
          mappings.set(vblock, { dataBlock, time: model.time })
          table.set(vblock, dataBlock)
        } else if (kind === 'share' && model.devices[device]!.snapshottedTime > 0) {
          mappings.set(vblock, { dataBlock, time: 0 })
          table.setShared(vblock, dataBlock)
        } else if (kind === 'unmap') {
          for (const key of mappings.keys()) {
            if (key >= vblock && key < vblock + length) mappings.delete(key)
          }
          table.unmap(vblock, vblock + length)
        } else if (kind === 'snap') {
          model.devices[device]!.snapshottedTime = ++model.time
          table.clear()
        }
        const was = found(table, vblock)
        if (was === model.wanted(device, vblock)) continue
        throw new Error(`after ${kind}: ${was}, wanted ${model.wanted(device, vblock)}`)
      }
      for (const [id, table] of tables.entries()) {
        for (let vblock = 0; vblock < VBLOCKS; vblock++) {
          if (found(table, vblock) !== model.wanted(id, vblock)) {
            throw new Error(`device ${id}, ${vblock}: ${found(table, vblock)}`)
          }
        }
      }
    }),
    { numRuns: 60 },
  )
}

t.test('tables that share a few pages say what the mappings say', async t => {
  t.doesNotThrow(() => agrees(NARROW_MAX), 'data blocks of 31 bits')
  t.doesNotThrow(() => agrees(BLOCK_MAX), 'data blocks of 40 bits')
})

t.test('the first data block that needs more room', async t => {
  for (const how of ['looked up', 'noted']) {
    const model = new Model()
    const pages = new PageCache(CACHE_SIZE)
    const [one, other] = [0, 1].map(id => new LookupTable(model, devId(id), pages))
    const { mappings } = model.devices[0]!
    mappings.set(5, { dataBlock: NARROW_MAX, time: 0 })
    model.devices[1]!.mappings.set(5, { dataBlock: 7, time: 0 })
    t.equal(found(one!, 5), String(NARROW_MAX))
    t.equal(found(other!, 5), '7')
    const narrow = pages.entryMax
    mappings.set(PAGE_ENTRIES, { dataBlock: NARROW_MAX + 1, time: 0 })
    if (how === 'noted') one!.set(PAGE_ENTRIES, NARROW_MAX + 1)
    t.equal(found(one!, PAGE_ENTRIES), String(NARROW_MAX + 1), how)
    t.ok(pages.entryMax > narrow)
    t.equal(found(one!, 5), String(NARROW_MAX), 'what was there before')
    t.equal(found(other!, 5), '7', 'of another device')
  }
})

t.test('pages are filled once while they fit', async t => {
  const model = new Model()
  const pages = new PageCache(CACHE_SIZE)
  const tables = model.devices.map((_, id) => new LookupTable(model, devId(id), pages))
  const visit = (id: number, count: number): number => {
    const before = model.nrWalks
    for (let page = 0; page < count; page++) tables[id]!.get(page * PAGE_ENTRIES)
    return model.nrWalks - before
  }
  t.equal(visit(0, PAGES), PAGES)
  t.equal(visit(0, PAGES), 0)
  tables[0]!.clear()
  t.equal(visit(1, PAGES - 1), PAGES - 1, 'in the room that the other left')
  t.equal(visit(2, 1), 1)
  t.equal(visit(1, PAGES - 1), 0)
  t.equal(visit(2, 1), 0)
  t.equal(visit(0, 1), 1, 'one too many')
  t.equal(visit(0, 1), 0)
  t.ok(visit(1, PAGES - 1) + visit(2, 1) > 0, 'for which another went')
})

t.test('a corrupt leaf is an error each time, and only where it is', async t => {
  const blocks = 4 * PAGE_ENTRIES
  const blockSize = 4096
  const files = formatted({ blockSectors: 8, dataBlocks: blocks })
  const size = bytes(blocks * blockSize)
  const first = await openFiles(files)
  first.pool.devices.createThin(devId(0))
  const writer = first.pool.devices.get(devId(0), size)
  const content = Buffer.alloc(blockSize)
  for (let vblock = 0; vblock < blocks; vblock++) {
    content.writeUInt32LE(vblock)
    await writer.write(vblock * blockSize, blockSize, content, 0)
  }
  await first.pool.close()

  const { pool } = await openFiles(files)
  const device = pool.devices.get(devId(0), size)
  const read = (vblock: number): number => {
    device.read(vblock * blockSize, blockSize, content, 0)
    return content.readUInt32LE()
  }
  const leaf = leafOf(files.metadata.image, blocks / 2)
  files.metadata.image[leaf + 2000]! ^= 1
  for (let round = 0; round < 2; round++) {
    t.throws(() => read(blocks / 2), { code: 'METADATA_CORRUPT', errno: 'EIO' })
    t.equal(read(0), 0)
    t.equal(read(blocks - 1), blocks - 1)
  }
  files.metadata.image[leaf + 2000]! ^= 1
  const numbers = Array.from({ length: blocks }, (_, vblock) => vblock)
  t.same(numbers.map(read), numbers)
})

/**
 * The byte at which the leaf begins that maps `vblock` of the only device, whose keys are dense.
 */
function leafOf(image: Buffer, vblock: number): number {
  const view = new DataView(image.buffer, image.byteOffset, image.length)
  for (let at = 0; at < image.length; at += METADATA_BLOCK_SIZE) {
    const { flags, valueSize, nrEntries, blockNr } = NODE.read(view, at)
    // Leaves of the space maps' trees have other values, those of the device tree few.
    if (blockNr * METADATA_BLOCK_SIZE !== at || flags !== NODE_LEAF || valueSize !== 8) continue
    const begin = readU64(view, at + NODE.size)
    if (nrEntries > 1 && vblock >= begin && vblock < begin + nrEntries) return at
  }
  throw new Error(`no leaf maps ${vblock}`)
}
