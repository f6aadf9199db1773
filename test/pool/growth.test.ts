// Goal: a pool that is made larger is so at once and altogether: writes that wait go on, a death or
// a power cut in the middle leaves a pool that opens, and a size that cannot be had changes
// nothing. Method: pools in memory; thin_check judges what each power cut leaves.
import t from 'tap'
import { bytes, ThinfsError } from '../../src/base/index.js'
import { ThinMetadata } from '../../src/metadata/index.js'
import { devId, formatted, type MemoryFiles, openFiles } from '../support/memory-pool.js'
import { MemoryStore } from '../support/memory-store.js'
import { Random } from '../support/random.js'
import { SparseStore } from '../support/sparse-store.js'
import { BLOCK, byteAt, files, filled, thin, turn } from '../support/thin-devices.js'
import { thinCheck } from '../support/thin-tools.js'

const MIB = 2 ** 20

async function turns(count = 20): Promise<void> {
  for (let i = 0; i < count; i++) await turn()
}

t.test('writes that wait go on at once', async t => {
  const memory = files(4)
  const { pool, recorded } = await openFiles(memory, { onFull: 'queue' })
  const device = thin(pool, 0)
  await device.write(0, 4 * BLOCK, filled(4 * BLOCK, 1), 0)
  let ended = false
  const waiting = (async () => device.write(8 * BLOCK, 512, filled(512, 2), 0))().then(() => {
    ended = true
  })
  await turns()
  t.equal(ended, false)
  await pool.space.extend({ data: 6 * BLOCK + 1 })
  await waiting
  t.equal(memory.data.size, 7 * BLOCK, 'whole blocks')
  t.equal(pool.metadata.nrDataBlocks, 7)
  t.equal(byteAt(device, 8 * BLOCK), 2)
  t.same(recorded.modes, ['out_of_data_space', 'write'])
  await pool.space.extend({ data: 7 * BLOCK })
  t.equal(pool.metadata.nrDataBlocks, 7, 'asked twice, done once')
  await pool.close()
  t.equal(thinCheck(memory.metadata.image).status, 0)
})

t.test('without sizes it takes what files and devices have become', async t => {
  const memory = files(4)
  const { pool } = await openFiles(memory)
  memory.data.grow(bytes(9 * BLOCK + 512))
  memory.metadata.grow(bytes(2000 * 4096))
  await pool.space.extend({})
  t.same([pool.metadata.nrDataBlocks, pool.metadata.nrMetadataBlocks], [9, 2000])
  t.equal(memory.data.size, 9 * BLOCK + 512)
  await pool.close()
})

t.test('a size that cannot be had changes nothing', async t => {
  const memory = files(4)
  const { pool } = await openFiles(memory)
  // As a device, which says by itself that it does not grow.
  const grow = (size: number): never => {
    const detail = `data: is a device of ${memory.data.size} bytes, ${size} are wanted`
    throw new ThinfsError('BAD_ARGUMENT', detail)
  }
  Object.assign(memory.data, { hostRoom: () => null, grow })
  const sizes = () => [memory.data.size, memory.metadata.size, pool.metadata.nrDataBlocks]
  const before = sizes()
  const cases: [wanted: { data?: number; metadata?: number }, message: RegExp][] = [
    [{ data: 4 * BLOCK - 512 * 1024 }, /data: .* less than the 262144 that the pool has/],
    [{ metadata: 4096 }, /metadata: 4096 bytes are less than the 4194304 that the pool has/],
    [{ metadata: 16 * 2 ** 30 }, /metadata: 17179869184 bytes, at most 17045913600 are possible/],
    [{ data: 2 ** 53 }, /data: .*, at most 9007199254740991 are possible/],
    [{ data: 5 * BLOCK, metadata: 8 * MIB }, /data: is a device of 262144 bytes, 327680 are/],
  ]
  for (const [wanted, message] of cases) {
    await t.rejects(pool.space.extend(wanted), { code: 'BAD_ARGUMENT', message })
    t.same(sizes(), before)
  }
  await pool.close()
  await t.rejects(pool.space.extend({}), { code: 'POOL_FAILED' })
})

/** A pool of 4 KiB blocks, with so many metadata blocks: none of them are data's. */
async function sparse(metadataBlocks: number) {
  const metadata = new MemoryStore(metadataBlocks * 4096, { path: 'metadata' })
  ThinMetadata.format(metadata, { dataBlockSectors: 8 })
  const data = new SparseStore('data', Buffer.alloc(0), 1000 * 4096)
  const { journal } = formatted({ blockSectors: 8, dataBlocks: 0 })
  const opened = await openFiles({ metadata, data, journal })
  return { metadata, data, ...opened }
}

t.test('a map that the metadata has no room for is refused, with what makes room', async t => {
  const { pool, data, metadata } = await sparse(80)
  const wanted = 2_000_000 * 4096
  await t.rejects(pool.space.extend({ data: wanted }), {
    code: 'NO_METADATA_SPACE',
    message: /takes \d+ blocks more than are free: thinfs extend --metadata \+1M/,
  })
  t.same([data.size, metadata.size], [1000 * 4096, 80 * 4096])
  await pool.space.extend({ data: wanted, metadata: 80 * 4096 + MIB })
  t.equal(pool.metadata.nrDataBlocks, 2_000_000)
  await pool.close()
  t.equal(thinCheck(metadata.image).status, 0)
})

t.test('what takes long is done in turns, and requests run between them', async t => {
  const { pool, metadata } = await sparse(2000)
  pool.devices.createThin(devId(0))
  const device = pool.devices.get(devId(0), bytes(MIB))
  const seen: number[] = []
  const extended = pool.space.extend({ data: 5_000_000 * 4096 })
  while (pool.metadata.nrDataBlocks < 5_000_000) {
    await device.write(0, 512, filled(512, seen.length), 0)
    seen.push(pool.metadata.nrDataBlocks)
    await turn()
  }
  await extended
  t.ok(new Set(seen).size >= 4, `${seen}`)
  await pool.close()
  t.equal(thinCheck(metadata.image).status, 0)
})

t.test('whatever a power cut or a death leaves opens, and can be extended', async t => {
  for (let seed = 1; seed <= 4; seed++) {
    const random = new Random(seed)
    const memory = files(4)
    const { pool } = await openFiles(memory)
    await thin(pool, 0).write(0, BLOCK, filled(BLOCK, 1), 0)
    await pool.commit()
    const images: MemoryFiles[] = []
    const keep = (): boolean => random.below(2) === 0
    const look = (): void => {
      const { metadata, data, journal } = memory
      const isDeath = keep()
      images.push({
        metadata: isDeath ? metadata.reopen() : metadata.crash(keep),
        data: isDeath ? data.reopen() : data.crash(keep),
        journal: journal.copy(isDeath ? undefined : 'boot-2'),
      })
    }
    memory.metadata.onWrite = look
    await pool.space.extend({ data: 8 * BLOCK, metadata: 8 * MIB })
    memory.metadata.onWrite = undefined
    t.ok(images.length > 3)
    for (const image of images) {
      const next = await openFiles(image)
      t.equal(byteAt(thin(next.pool, 0), 0), 1, `seed ${seed}`)
      await next.pool.space.extend({ data: 8 * BLOCK, metadata: 8 * MIB })
      t.same([next.pool.metadata.nrDataBlocks, next.pool.metadata.nrMetadataBlocks], [8, 2048])
      await next.pool.close()
      t.equal(thinCheck(image.metadata.image).status, 0, `seed ${seed}`)
    }
    await pool.close()
  }
})

t.test('what was behind the end of a file is not shown, whoever made it longer', async t => {
  for (const isOpen of [true, false]) {
    const memory = files(4)
    const { pool } = await openFiles(memory)
    thin(pool, 0)
    await pool.commit()
    if (!isOpen) await pool.close()
    memory.data.grow(bytes(6 * BLOCK))
    memory.data.write(filled(2 * BLOCK, 0xee), 0, 2 * BLOCK, bytes(4 * BLOCK))
    const grown = isOpen ? pool : (await openFiles(memory)).pool
    if (isOpen) await grown.space.extend({})
    t.equal(grown.metadata.nrDataBlocks, 6)
    const device = thin(grown, 0)
    for (let block = 0; block < 6; block++) {
      await device.write(block * BLOCK, 512, filled(512, 1), 0)
      t.equal(byteAt(device, block * BLOCK + 512), 0, `block ${block}`)
    }
    await grown.close()
  }
})
