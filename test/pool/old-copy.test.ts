// Goal: metadata that may be an older copy never costs a byte of data by itself. Method: copies of
// the files of a pool at two moments, put together in every way that a person can, and the data
// compared with what it was.
import t, { type Test } from 'tap'
import { bytes, type DevId } from '../../src/base/index.js'
import { ThinMetadata } from '../../src/metadata/index.js'
import type { PoolOptions, ThinPool } from '../../src/pool/index.js'
import { formatted, type MemoryFiles, MemoryJournal, openFiles } from '../support/memory-pool.js'
import { MemoryStore } from '../support/memory-store.js'

const BLOCK = 4096
const DEV = 0 as DevId
const SIZE = bytes(32 * BLOCK)

const storeOf = (image: Buffer, path: string): MemoryStore =>
  new MemoryStore(image.length, { path, image: Buffer.from(image) })

async function write(
  files: MemoryFiles,
  begin: number,
  count: number,
  end: 'closed' | 'killed',
  discards: PoolOptions['discards'] = 'passdown',
) {
  const { pool } = await openFiles(files, { discards })
  if (!pool.metadata.hasDevice(DEV)) pool.devices.createThin(DEV)
  const content = Buffer.alloc(count * BLOCK, 'content')
  await pool.devices.get(DEV, SIZE).write(begin * BLOCK, content.length, content, 0)
  await pool.commit()
  if (end === 'closed') await pool.close()
}

/**
 * A pool with 4 blocks written, and two openings later with 8: no transaction id lies between the
 * two.
 */
async function twoMoments(end: 'closed' | 'killed') {
  const files = formatted({ blockSectors: 8, dataBlocks: 64, metadataBlocks: 64 })
  await write(files, 0, 4, 'closed')
  const old = Buffer.from(files.metadata.image)
  await write(files, 4, 2, 'closed')
  await write(files, 6, 2, end)
  return { old, files, data: Buffer.from(files.data.image) }
}

const REFUSED = {
  code: 'POOL_MISMATCH',
  message: /^metadata: 4 data blocks that it calls free hold data.*older copy.*--accept-metadata/,
}

async function refused(t: Test, files: MemoryFiles): Promise<void> {
  const before = [files.metadata.image, files.data.image, files.journal.content].map(b =>
    Buffer.from(b),
  )
  await t.rejects(openFiles(files), REFUSED)
  t.same([files.metadata.image, files.data.image, files.journal.content], before, 'as it was')
}

for (const end of ['closed', 'killed'] as const) {
  t.test(`an older copy of the metadata beside a pool that was ${end}`, async t => {
    const { old, files, data } = await twoMoments(end)
    const mixed = { ...files, metadata: storeOf(old, 'metadata') }
    await refused(t, mixed)
    const { pool } = await openFiles(
      { ...mixed, journal: files.journal.copy() },
      { readOnly: true },
    )
    await pool.close()
    t.ok(files.data.image.equals(data))

    const accepted = { ...mixed, data: storeOf(data, 'data'), journal: files.journal.copy() }
    const { pool: served } = await openFiles(accepted, { acceptMetadata: true })
    t.equal(served.space.data.nrFree, 60)
    t.notOk(accepted.data.image.includes('content', 4 * BLOCK), 'the deliberate way round')

    const { pool: right } = await openFiles(files)
    t.equal(right.space.data.nrFree, 56, 'the right metadata put back')
  })
}

for (const end of ['closed', 'killed'] as const) {
  t.test(`metadata from before the pool was extended, and it was ${end}`, async t => {
    const files = formatted({ blockSectors: 8, dataBlocks: 4, metadataBlocks: 64 })
    await write(files, 0, 4, 'closed')
    const old = { ...files, metadata: storeOf(files.metadata.image, 'metadata') }
    const journal = files.journal.copy()
    files.data.grow(bytes(8 * BLOCK))
    await write(files, 4, 4, end)
    // All that was written since is behind the end that the old one knows.
    await refused(t, { ...old, journal: files.journal.copy() })
    await refused(t, { ...old, journal })
    t.equal((await openFiles(files)).pool.space.data.nrFree, 0, 'the right one put back')
  })
}

/** A change of which devices there are, as Volumes makes it: with the next transaction id. */
async function restructure(pool: ThinPool, act: () => void): Promise<void> {
  const { transactionId } = pool.metadata
  act()
  pool.setTransactionId(transactionId, transactionId + 1)
  await pool.commit()
}

const OLDER = {
  code: 'POOL_MISMATCH',
  message: /^metadata: the journal knows newer metadata.*--accept-metadata/,
}
const SNAPSHOT = 1 as DevId

/** What one command does, and what may follow until both processes are killed. */
const STEPS: Record<string, (pool: ThinPool) => Promise<void>> = {
  'a create, written to': async pool => {
    await restructure(pool, () => pool.devices.createThin(SNAPSHOT))
    await pool.devices.get(SNAPSHOT, SIZE).write(0, BLOCK, Buffer.alloc(BLOCK, 'content'), 0)
    await pool.settle()
  },
  'a create, flushed': async pool => {
    await STEPS['a create, written to']!(pool)
    await pool.commit()
  },
  'a create and nothing else': pool => restructure(pool, () => pool.devices.createThin(SNAPSHOT)),
  'a snapshot, whose origin goes on': async pool => {
    await restructure(pool, () => pool.devices.createSnap(SNAPSHOT, DEV))
    await pool.devices.get(DEV, SIZE).write(0, BLOCK, Buffer.alloc(BLOCK, 'content'), 0)
    await pool.settle()
  },
  'a rename': pool => restructure(pool, () => {}),
  'a removal': pool => restructure(pool, () => pool.devices.delete(DEV)),
}

for (const [what, step] of Object.entries(STEPS)) {
  for (const end of ['killed', 'closed'] as const) {
    t.test(`metadata from before ${what}, put back when the pool was ${end}`, async t => {
      const files = formatted({ blockSectors: 8, dataBlocks: 64, metadataBlocks: 64 })
      await write(files, 0, 4, 'closed')
      const { pool } = await openFiles(files)
      const old = Buffer.from(files.metadata.image)
      await step(pool)
      if (end === 'closed') await pool.close()
      const before = [old, files.data.image, files.journal.content].map(b => Buffer.from(b))
      const mixed = { ...files, metadata: storeOf(old, 'metadata') }
      await t.rejects(openFiles(mixed), OLDER)
      t.same([mixed.metadata.image, files.data.image, files.journal.content], before)
      const { pool: accepted } = await openFiles(
        { ...mixed, data: storeOf(files.data.image, 'data'), journal: files.journal.copy() },
        { acceptMetadata: true },
      )
      t.equal(accepted.mode, 'write')
      t.equal((await openFiles(files)).pool.mode, 'write', 'the right metadata put back')
    })
  }
}

/** Copies of a pool's files as they are. */
const copyOf = ({ metadata, data, journal }: MemoryFiles): MemoryFiles => {
  const copied = storeOf(data.image, 'data')
  copied.label = data.label
  return { metadata: storeOf(metadata.image, 'metadata'), data: copied, journal: journal.copy() }
}

/** A copy of the files, taken while the pool is open or closed, and the files as they went on. */
async function goesOn(taken: 'open' | 'closed', end: 'killed' | 'closed') {
  const files = formatted({ blockSectors: 8, dataBlocks: 64, metadataBlocks: 64 })
  await write(files, 0, 4, 'closed')
  const closed = copyOf(files)
  const { pool } = await openFiles(files)
  const old = taken === 'open' ? copyOf(files) : closed
  for (const block of [4, 5]) {
    await pool.devices.get(DEV, SIZE).write(block * BLOCK, BLOCK, Buffer.alloc(BLOCK, 'content'), 0)
    await pool.commit()
  }
  if (end === 'closed') await pool.close()
  return { old, files }
}

for (const taken of ['open', 'closed'] as const) {
  for (const end of ['killed', 'closed'] as const) {
    t.test(
      `all but the data are a copy, taken when the pool was ${taken}, and it was ${end}`,
      async t => {
        const { old, files } = await goesOn(taken, end)
        const mixed = { ...old, data: files.data }
        const before = Buffer.from(files.data.image)
        await t.rejects(openFiles(mixed), {
          code: 'POOL_MISMATCH',
          message: /^metadata: 2 data blocks that it calls free hold data.*older copy/,
        })
        t.ok(files.data.image.equals(before))
        await openFiles(copyOf(mixed), { acceptMetadata: true })
        t.equal((await openFiles(files)).pool.space.data.nrFree, 58, 'the right ones put back')
      },
    )

    t.test(`the data is a copy, taken when the pool was ${taken}, and it was ${end}`, async t => {
      const { old, files } = await goesOn(taken, end)
      const mixed = { ...files, data: old.data }
      await t.rejects(openFiles(mixed), {
        code: 'POOL_MISMATCH',
        message: /^data: as of commit \d+, the journal knows commit \d+: this is an older copy/,
      })
      await openFiles(copyOf(mixed), { acceptMetadata: true })
      t.equal((await openFiles(files)).pool.space.data.nrFree, 58, 'the right one put back')
    })

    t.test(`all are a copy, taken when the pool was ${taken}, and it was ${end}`, async t => {
      const { old, files } = await goesOn(taken, end)
      const data = storeOf(old.data.image, 'data')
      for (const label of [old.data.label, files.data.label, null]) {
        data.label = label
        const { pool } = await openFiles({ ...copyOf(old), data })
        t.equal(pool.space.data.nrFree, 60, 'also where the label is that of the file it replaced')
      }
    })
  }
}

for (const discards of ['nopassdown', 'ignore'] as const) {
  t.test(`discards: ${discards}: older files would have newer data written over`, async t => {
    const { old, files } = await goesOn('closed', 'closed')
    const mixed = { ...copyOf(old), data: files.data }
    const before = Buffer.from(files.data.image)
    await t.rejects(openFiles(mixed, { discards }), {
      code: 'POOL_MISMATCH',
      message: /^metadata: 2 data blocks that it calls free hold data.*older copy/,
    })
    t.ok(files.data.image.equals(before))
    t.equal((await openFiles(files, { discards })).pool.mode, 'write', 'the right ones put back')
    const { pool } = await openFiles(copyOf(mixed), { discards, acceptMetadata: true })
    t.equal(pool.mode, 'write')
    await pool.close()
  })

  t.test(
    `discards: ${discards}: free blocks that hold data are no doubt by themselves`,
    async t => {
      const files = formatted({ blockSectors: 8, dataBlocks: 64, metadataBlocks: 64 })
      const stale = Buffer.alloc(4 * BLOCK, 'discarded before')
      files.data.write(stale, 0, stale.length, bytes(20 * BLOCK))
      for (const end of ['closed', 'killed', 'closed'] as const) {
        await write(files, 0, 4, end, discards)
        t.equal((await openFiles(copyOf(files), { discards })).pool.mode, 'write', end)
      }
      const cut = copyOf(files)
      cut.journal.bootId = 'another boot'
      t.equal((await openFiles(cut, { discards })).pool.mode, 'write', 'a power cut')
    },
  )
}

const UNLABELLED = {
  code: 'POOL_MISMATCH',
  message:
    /^metadata: 2 data blocks that it calls free hold data.*closed without any.*--accept-metadata/,
}

for (const end of ['killed', 'closed'] as const) {
  t.test(`data that lost its label beside older files of a closed pool: it was ${end}`, async t => {
    const { old, files } = await goesOn('closed', end)
    const lost = copyOf(files)
    lost.data.label = null
    const mixed = { ...copyOf(old), data: lost.data }
    const before = [mixed.metadata.image, mixed.data.image, mixed.journal.content].map(b =>
      Buffer.from(b),
    )
    await t.rejects(openFiles(mixed), UNLABELLED)
    t.same([mixed.metadata.image, mixed.data.image, mixed.journal.content], before, 'as it was')
    await openFiles({ ...mixed, journal: mixed.journal.copy() }, { readOnly: true })

    const accepted = { ...copyOf(mixed) }
    const { pool } = await openFiles(accepted, { acceptMetadata: true })
    t.notOk(accepted.data.image.includes('content', 4 * BLOCK), 'whoever gets them sees nothing')
    await pool.close()
    t.equal((await openFiles(accepted)).pool.mode, 'write')
    t.equal((await openFiles(lost)).pool.space.data.nrFree, 58, 'the right ones put back')
  })
}

t.test('pools whose data never has a label are served, closed, copied and killed', async t => {
  const files = formatted({ blockSectors: 8, dataBlocks: 64, metadataBlocks: 64 })
  files.data.keepsLabels = false
  for (const [i, end] of (['closed', 'closed', 'killed', 'killed', 'closed'] as const).entries()) {
    await write(files, 2 * i, 2, end)
    const copied = copyOf(files)
    copied.data.keepsLabels = false
    t.equal((await openFiles(copied)).pool.space.data.nrFree, 64 - 2 * (i + 1), end)
  }
})

t.test('a store that keeps no label, or loses it, is no doubt', async t => {
  const { files } = await goesOn('open', 'killed')
  files.data.label = null
  files.data.keepsLabels = false
  for (let opening = 0; opening < 2; opening++) {
    const { pool } = await openFiles(files)
    const content = Buffer.alloc(BLOCK, 'content')
    await pool.devices.get(DEV, SIZE).write((8 + opening) * BLOCK, BLOCK, content, 0)
    await pool.commit()
  }
  files.data.keepsLabels = true
  t.equal((await openFiles(files)).pool.space.data.nrFree, 56)
})

t.test('zeros in the place of holes, as a copy may have them, are no doubt', async t => {
  const { files } = await goesOn('closed', 'closed')
  files.data.label = null
  files.data.write(Buffer.alloc(4 * BLOCK), 0, 4 * BLOCK, bytes(20 * BLOCK))
  const { pool } = await openFiles(files)
  t.equal(pool.mode, 'write')
  await pool.close()
})

t.test('a kill between a commit and its label, and a power cut that loses labels', async t => {
  const { files } = await goesOn('open', 'killed')
  const { pool } = await openFiles(files)
  const { label } = files.data
  await pool.devices.get(DEV, SIZE).write(8 * BLOCK, BLOCK, Buffer.alloc(BLOCK, 'content'), 0)
  await pool.commit()
  files.data.label = label
  t.equal((await openFiles(copyOf(files))).pool.mode, 'write', 'a kill')
  files.data.label = { pool: null, generation: 0 }
  files.journal.bootId = 'another boot'
  t.equal((await openFiles(files)).pool.mode, 'write', 'a power cut')
})

t.test('data of another pool', async t => {
  const { files } = await goesOn('closed', 'closed')
  const label = { pool: '11111111-1111-4111-8111-111111111111', generation: 0 }
  files.data.label = { ...label, generation: 9 }
  t.equal((await openFiles(copyOf(files))).pool.mode, 'write', 'metadata without an id')

  const another = formatted({ blockSectors: 8, dataBlocks: 64, metadataBlocks: 64 })
  ThinMetadata.format(another.metadata, { dataBlockSectors: 8, uuid: Buffer.alloc(16, 0x22) })
  another.data.label = label
  await t.rejects(openFiles(another), {
    code: 'POOL_MISMATCH',
    message: /^data: of the pool 1111.*the metadata is of 2222.*--accept-metadata/,
  })
  const { pool } = await openFiles(another, { acceptMetadata: true })
  t.match(another.data.label?.pool, /^2222/, 'it has the right one now')
  await pool.close()
})

t.test('a kill before the commit of a create is durable is no doubt', async t => {
  const files = formatted({ blockSectors: 8, dataBlocks: 64, metadataBlocks: 64 })
  await write(files, 0, 4, 'closed')
  const { pool } = await openFiles(files)
  const old = Buffer.from(files.metadata.image)
  const content = Buffer.alloc(BLOCK, 'c')
  await pool.devices.get(DEV, SIZE).write(4 * BLOCK, BLOCK, content, 0)
  await pool.settle()
  const committed = restructure(pool, () => pool.devices.createThin(SNAPSHOT))
  await pool.devices.get(DEV, SIZE).write(5 * BLOCK, BLOCK, content, 0)
  await pool.settle()
  const left = { metadata: storeOf(old, 'metadata'), journal: files.journal.copy() }
  const data = storeOf(files.data.image, 'data')
  data.label = files.data.label
  await committed
  // Those that come next are killed while they open the pool, before their commit is durable.
  for (const _ of ['one', 'another']) {
    const metadata = storeOf(old, 'metadata')
    metadata.onWrite = op => {
      if (op === 'write') throw new Error('killed')
    }
    const { length } = left.journal.content
    await t.rejects(openFiles({ ...left, data, metadata }))
    t.ok(left.journal.content.length > length, 'it has named its superblock')
  }
  const { pool: next } = await openFiles({ ...left, data })
  const found = Buffer.alloc(2 * BLOCK)
  next.devices.get(DEV, SIZE).read(4 * BLOCK, found.length, found, 0)
  t.equal(found.toString(), 'c'.repeat(2 * BLOCK), 'what was acknowledged is there')
  t.notOk(next.metadata.hasDevice(SNAPSHOT))
})

t.test('another boot', async t => {
  const closed = await twoMoments('closed')
  closed.files.journal.bootId = 'another boot'
  await refused(t, { ...closed.files, metadata: storeOf(closed.old, 'metadata') })

  const cut = await twoMoments('killed')
  cut.files.journal.bootId = 'another boot'
  const mixed = { ...cut.files, metadata: storeOf(cut.old, 'metadata') }
  const { pool } = await openFiles(mixed)
  t.equal(pool.space.data.nrFree, 60, 'a power cut may have lost the journal, and is no doubt')
})

t.test('another boot, whose journal still names the older copy', async t => {
  const { old, files } = await goesOn('open', 'killed')
  const mixed = { ...copyOf(files), metadata: old.metadata }
  mixed.journal.bootId = 'another boot'
  const before = Buffer.from(mixed.data.image)
  await t.rejects(openFiles(mixed), {
    code: 'POOL_MISMATCH',
    message: /^metadata: 2 data blocks that it calls free hold data.*older copy/,
  })
  t.ok(mixed.data.image.equals(before))
  // A label is written when its commit is durable: no power cut leaves one that is ahead of that.
  for (const [what, change] of Object.entries<(left: MemoryFiles) => void>({
    'the label may be lost as well': ({ data }) => {
      data.label = old.data.label
    },
    'the journal may be lost': ({ journal }) => journal.cut(0),
  })) {
    const left = copyOf(mixed)
    change(left)
    t.equal((await openFiles(left)).pool.space.data.nrFree, 60, what)
  }
})

t.test('no journal, or nothing to lose, is no doubt', async t => {
  const { old, files, data } = await twoMoments('closed')
  await openFiles({
    metadata: storeOf(old, 'metadata'),
    data: storeOf(data, 'data'),
    journal: new MemoryJournal(),
  })
  const holes = Buffer.from(data)
  holes.fill(0, 4 * BLOCK)
  const journal = files.journal.copy()
  const metadata = storeOf(old, 'metadata')
  const { pool } = await openFiles({ metadata, data: storeOf(holes, 'data'), journal })
  // What the journal says now has to outlast a power cut: free blocks are written to.
  t.equal(pool.mode, 'write')
})

t.test('another program that went on is no doubt where it shows', async t => {
  for (const act of [
    (metadata: ThinMetadata) => metadata.setTransactionId(0, 1),
    (metadata: ThinMetadata) => metadata.createSnap(7 as DevId, DEV),
  ]) {
    const { files } = await twoMoments('closed')
    const metadata = ThinMetadata.open(files.metadata)
    act(metadata)
    metadata.mappings.removeRange(DEV, 0, 2)
    await metadata.seal()!.write()
    const { pool } = await openFiles(files)
    t.equal(pool.mode, 'write')
  }
})

t.test('needs_check, which is set when the journal may not be written, is no doubt', async t => {
  const { files } = await twoMoments('killed')
  const metadata = ThinMetadata.open(files.metadata)
  metadata.mappings.removeRange(DEV, 0, 2)
  metadata.setNeedsCheck()
  await metadata.seal()!.write()
  const { pool } = await openFiles(files)
  t.equal(pool.mode, 'write')
})

t.test('stores that are smaller than the pool are refused before they grow', async t => {
  const { files } = await twoMoments('closed')
  for (const size of [0, BLOCK, 63 * BLOCK]) {
    const data = storeOf(files.data.image.subarray(0, size), 'data')
    const short = { ...files, data }
    await t.rejects(openFiles(short, { dataSize: bytes(64 * BLOCK) }), {
      code: 'POOL_MISMATCH',
      message: `data: ${size / BLOCK} blocks, the pool has 64: the rest of it is missing`,
    })
    t.equal(data.size, size)
  }
  const { pool } = await openFiles(files, { dataSize: bytes(100 * BLOCK) })
  t.equal(pool.metadata.nrDataBlocks, 100)
})
