/**
 * Metadata made of a dump: thin_check and thin_dump, which are not ours, judge what comes of it.
 */
import fc from 'fast-check'
import t from 'tap'
import type { DataBlock, DevId } from '../../src/base/index.js'
import { checkMetadata, ThinMetadata } from '../../src/metadata/index.js'
import { dumpXml, restoreXml } from '../../src/streams/index.js'
import { MemoryStore } from '../support/memory-store.js'
import {
  fixtureFacts,
  fixtureXml,
  parseDump,
  thinCheck,
  thinDumpXml,
} from '../support/thin-tools.js'

const UUID = Buffer.alloc(16, 7)
const GOOD = Object.keys(fixtureFacts()).filter(name => !name.startsWith('corrupt-'))

/** As a pipe brings it. */
async function* piecesOf(text: string, size = 1000): AsyncGenerator<Uint8Array> {
  const bytes = Buffer.from(text)
  for (let at = 0; at < bytes.length; at += size) yield bytes.subarray(at, at + size)
}

async function restored(xml: string, size = 4 << 20, sectors = 128): Promise<MemoryStore> {
  const store = new MemoryStore(size)
  await restoreXml(piecesOf(xml), store, {
    uuid: UUID,
    dataBlockSectors: sectors,
    nrDataBlocks: 4 << 20,
    onProgress: () => {},
  })
  return store
}

for (const name of GOOD) {
  t.test(`${name}: dumped again it is the same, byte by byte`, async t => {
    const xml = fixtureXml(name)
    const store = await restored(xml, 4 << 20, parseDump(xml).dataBlockSize)
    t.same(checkMetadata(store).problems, [])
    t.equal(thinCheck(store.image).status, 0, 'thin_check')
    t.equal(thinDumpXml(store.image) === xml, true, 'thin_dump')
    t.equal([...dumpXml(store, null)].join('') === xml, true, 'thinfs dump')
  })
}

const HEAD =
  '<superblock uuid="" time="3" transaction="9" flags="0" version="2" data_block_size="128" nr_data_blocks="1000000">'
const device = (devId: number, mapped: number, mappings: string): string =>
  `  <device dev_id="${devId}" mapped_blocks="${mapped}" transaction="1" creation_time="0" snap_time="2">\n${mappings}  </device>\n`
const dump = (content: string): string => `${HEAD}\n${content}</superblock>\n`
/** A dump with neighbours as ranges, as it comes of thinfs dump. */
async function runsOf(xml: string): Promise<string> {
  return [...dumpXml(await restored(xml), null)].join('')
}
const single = (block: number, data: number): string =>
  `    <single_mapping origin_block="${block}" data_block="${data}" time="1"/>\n`

t.test('a device of three levels, which a pool goes on with', async t => {
  const singles = Array.from({ length: 70_000 }, (_, i) => single(3 * i, 2 * i)).join('')
  const xml = dump(device(5, 70_000, singles))
  const store = await restored(xml)
  t.equal(thinDumpXml(store.image) === xml, true, 'thin_dump')
  const metadata = ThinMetadata.open(store)
  metadata.createSnap(6 as DevId, 5 as DevId)
  for (let i = 0; i < 70_000; i += 200) {
    metadata.mappings.insert(
      6 as DevId,
      3 * i + 1,
      metadata.allocateData() as DataBlock,
      metadata.time,
    )
  }
  metadata.mappings.removeRange(5 as DevId, 1000, 100_000)
  await metadata.seal()!.write()
  t.same(checkMetadata(store).problems, [])
  t.equal(thinCheck(store.image).status, 0, 'thin_check')
})

t.test('runs that devices share are shared again', async t => {
  // Goal: def and ref mean what they stand for, and a full leaf of a def has several owners.
  // Method: random runs of all sizes in random devices; the same dump with each ref written out.
  const segment = fc.record({ isDef: fc.boolean(), length: fc.integer({ min: 0, max: 700 }) })
  const segments = fc.array(segment, { minLength: 1, maxLength: 6 })
  const property = fc.asyncProperty(segments, fc.array(fc.nat(63)), async (segments, devices) => {
    const texts = segments.map(({ length }, place) => {
      const mappings = Array.from({ length }, (_, i) => single(1000 * place + i, 700 * place + i))
      return mappings.join('')
    })
    const defs = texts.map((text, i) => `  <def name="${i}">\n${text}  </def>\n`)
    // Each bit of a device's number says whether it has a segment.
    const hasIt = (devId: number, i: number): boolean => ((devices[devId]! >> i) & 1) === 1
    const content = (write: (i: number) => string): string =>
      devices
        .map((_, devId) => {
          const has = segments.map((_, i) => i).filter(i => hasIt(devId, i))
          const mapped = has.reduce((sum, i) => sum + segments[i]!.length, 0)
          return device(devId, mapped, has.map(write).join(''))
        })
        .join('')
    const refs = content(i => (segments[i]!.isDef ? `    <ref name="${i}"/>\n` : texts[i]!))
    const written = dump(content(i => texts[i]!))
    const store = await restored(dump(defs.filter((_, i) => segments[i]!.isDef).join('') + refs))
    const { problems } = checkMetadata(store)
    if (problems.length > 0) throw new Error(problems[0]!.message)
    if ([...dumpXml(store, null)].join('') !== (await runsOf(written)))
      throw new Error('not the same')
  })
  await fc.assert(property, { numRuns: 25 })

  const many = Array.from({ length: 5000 }, (_, i) => single(i, 2 * i)).join('')
  const twice = [1, 2].map(devId => device(devId, 5000, '    <ref name="x"/>\n')).join('')
  const shared = await restored(dump(`  <def name="x">\n${many}  </def>\n${twice}`))
  const copied = await restored(dump([1, 2].map(devId => device(devId, 5000, many)).join('')))
  t.equal(thinDumpXml(shared.image) === thinDumpXml(copied.image), true)
  t.equal(thinCheck(shared.image).status, 0, 'thin_check')
  const used = (store: MemoryStore) => ThinMetadata.open(store).nrAllocatedMetadataBlocks
  t.equal(used(copied) - used(shared), Math.ceil(5000 / 252), 'the leaves are there once')
  t.equal(ThinMetadata.open(shared).dataCount(0 as DataBlock), 1)
  t.equal(ThinMetadata.open(copied).dataCount(0 as DataBlock), 2)
})

t.test('what is no whole dump of this pool is refused, with the line', async t => {
  const one = device(1, 1, single(0, 0))
  const cases: [xml: string, code: string, message: RegExp][] = [
    ['', 'BAD_STREAM', /line 1: document must contain a root element/],
    ['hello', 'BAD_STREAM', /line 1: text/],
    [dump(one).slice(0, -30), 'BAD_STREAM', /line 3: unclosed tag/],
    [dump(`${one}${one}`), 'BAD_STREAM', /line 5: device 1 is there twice/],
    [dump(device(1, 2, single(5, 1) + single(5, 2))), 'BAD_STREAM', /block 5 comes after block 5/],
    [dump(device(1, 1, single(0, 1000000))), 'BAD_STREAM', /line 3: .* beyond the data/],
    [dump('<def name="a"/><device/>'), 'BAD_STREAM', /device: dev_id is missing/],
    [dump(device(1, 0, '<ref name="a"/>')), 'BAD_STREAM', /ref: no def before it is a/],
    [dump('<thin/>'), 'BAD_STREAM', /<thin> in <superblock>/],
    [single(0, 0), 'BAD_STREAM', /<single_mapping> as the first element/],
    [dump(one).replace('time="1"', 'time="4"'), 'BAD_STREAM', /time is "4", wanted .* up to 3/],
    [dump(one).replace('"128"', '"256"'), 'POOL_MISMATCH', /131072 bytes, the pool's have 65536/],
    [dump(one).replace('"1000000"', '"9000000"'), 'POOL_MISMATCH', /9000000 data blocks/],
    [dump(one).replace('version="2"', 'version="1"'), 'METADATA_UNSUPPORTED', /version 1/],
  ]
  for (const [xml, code, message] of cases) {
    await t.rejects(restored(xml), { code, message }, String(message))
  }
  const much = Array.from({ length: 5000 }, (_, i) => single(2 * i, i)).join('')
  const small = restored(dump(device(1, 5000, much)), 20 * 4096)
  await t.rejects(small, { code: 'NO_METADATA_SPACE' })
})

t.test("a metadata snapshot's dump, which does not say how large the data is", async t => {
  const xml = dump(device(1, 1, single(0, 10))).replace('"1000000"', '"0"')
  const store = await restored(xml, 16 << 20)
  t.equal(ThinMetadata.open(store).nrDataBlocks, 4 << 20)
})
