// Goal: a pool that another program wrote loses nothing by being opened. Method: images with damage
// that is known, beside data whose every block is full; the data has to be as it was.
import t from 'tap'
import { bytes, type DataBlock } from '../../src/base/index.js'
import { checkMetadata } from '../../src/metadata/index.js'
import { devId, formatted, MemoryJournal, openFiles } from '../support/memory-pool.js'
import { MemoryStore } from '../support/memory-store.js'
import { fixture, thinCheck } from '../support/thin-tools.js'

const BLOCK = 65536
const BLOCKS = 1024

/**
 * The files of a pool with an image of metadata, whose every data block is full of its own number.
 */
function filesOf(image: string) {
  const data = Buffer.alloc(BLOCKS * BLOCK)
  for (let block = 0; block < BLOCKS; block++)
    data.fill(block + 1, block * BLOCK, (block + 1) * BLOCK)
  const metadata = fixture(image)
  return {
    metadata: new MemoryStore(metadata.length, { path: 'metadata', image: metadata }),
    data: new MemoryStore(data.length, { path: 'data', image: data }),
    journal: new MemoryJournal(),
  }
}

for (const [name, message] of [
  ['data-undercount', /^metadata: data block 7 has count 0, wanted 1/],
  ['metadata-undercount', /^metadata: metadata block 10 has count 0, wanted 1/],
] as const) {
  t.test(`${name}: refused before anything is punched`, async t => {
    const files = filesOf(`corrupt-${name}`)
    const before = Buffer.from(files.data.image)
    const metadata = Buffer.from(files.metadata.image)
    for (const discards of ['passdown', 'nopassdown'] as const) {
      await t.rejects(openFiles(files, { discards }), { code: 'METADATA_CORRUPT', message })
    }
    t.ok(files.data.image.equals(before), 'the data is as it was')
    t.ok(files.metadata.image.equals(metadata), 'the metadata is as it was')

    const { pool } = await openFiles(files, { readOnly: true })
    const [id] = pool.metadata.deviceIds()
    const mapping = { dataBlock: 0 as DataBlock, time: 0 }
    const vblock = pool.metadata.mappings.next(id!, 0, mapping)
    const found = Buffer.alloc(512)
    pool.devices.get(id!, bytes((vblock + 1) * BLOCK)).read(vblock * BLOCK, 512, found, 0)
    t.equal(found[0], (mapping.dataBlock + 1) % 256, 'read-only it can be read')
  })
}

t.test(
  'of what thinfs left itself only the roots are checked again, by whatever it ended',
  async t => {
    const files = formatted({ blockSectors: 128, dataBlocks: 64 })
    let reads = 0
    const { read } = files.metadata
    files.metadata.read = function (...args) {
      reads++
      read.apply(this, args)
    }
    const readsOf = async (journal: MemoryJournal): Promise<number> => {
      reads = 0
      await openFiles({ ...files, journal })
      return reads
    }
    const { pool } = await openFiles(files)
    // More than the root of the tree of devices can have, whose own roots are looked at.
    for (let id = 0; id < 400; id++) pool.devices.createThin(devId(id))
    await pool.commit()
    const running = files.journal.copy()
    await pool.close()
    const clean = files.journal.copy()
    t.equal(thinCheck(files.metadata.image).status, 0)
    const blocks = checkMetadata(files.metadata).usedMetadataBlocks

    const foreign = await readsOf(new MemoryJournal())
    t.ok(foreign > blocks, `without a journal: ${foreign} reads, ${blocks} blocks in use`)
    for (const [what, journal] of [
      ['orderly shutdown', clean.copy()],
      ['orderly shutdown, rebooted', clean.copy('another boot')],
      ['killed', running.copy()],
      ['power cut', running.copy('another boot')],
    ] as const) {
      const count = await readsOf(journal)
      t.ok(count < blocks / 2, `${what}: ${count} reads`)
    }
  },
)
