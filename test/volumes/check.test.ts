// Goal: `check --deep` finds every mapped block that cannot be read and every free one that is no
// hole, tells no tales of a pool that is in use, and lets others have their turn. Method: faults of
// the store and bytes put into free blocks of the data file behind the pool's back; a busy pool
// that is sound.
import { closeSync, copyFileSync, openSync, readFileSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { bytes, ThinfsError } from '../../src/base/index.js'
import type { PoolConfig } from '../../src/config/index.js'
import { checkData } from '../../src/volumes/check-data.js'
import {
  type CheckProgress,
  type CheckReport,
  checkPool,
  openPool,
  type Volumes,
} from '../../src/volumes/index.js'
import { devId, formatted, openFiles } from '../support/memory-pool.js'
import { filesLeft, makePool } from '../support/pool-files.js'
import { thinDump } from '../support/thin-tools.js'

const BLOCK = 65536

const messages = ({ problems }: Pick<CheckReport, 'problems'>): string[] =>
  problems.map(({ severity, message }) => `${severity}: ${message}`)

/** Writes into the data file past the pool. */
function scribble(config: PoolConfig, block: number, content: Buffer): void {
  const fd = openSync(config.data.path, 'r+')
  writeSync(fd, content, 0, content.length, block * BLOCK + 4096)
  closeSync(fd)
}

async function fill(volumes: Volumes, name: string, blocks: number): Promise<void> {
  const { device } = volumes.find(name)!
  const content = Buffer.alloc(BLOCK, name)
  for (let block = 0; block < blocks; block++) await device.write(block * BLOCK, BLOCK, content, 0)
}

t.test(
  'blocks that cannot be read are named with all who map them, and each is read once',
  async t => {
    const files = formatted({ blockSectors: 128, dataBlocks: 64 })
    const { pool } = await openFiles(files)
    pool.devices.createThin(devId(1))
    const content = Buffer.alloc(BLOCK, 7)
    const device = pool.devices.get(devId(1), bytes(64 * BLOCK))
    for (let block = 0; block < 20; block++)
      await device.write(block * 2 * BLOCK, BLOCK, content, 0)
    await pool.commit()
    pool.devices.createSnap(devId(2), devId(1))
    await pool.commit()
    const { mappings } = thinDump(files.metadata.image).devices.get(1)!
    const [bad, worse] = [3 * 2, 17 * 2].map(vblock => mappings.get(vblock)!.dataBlock)

    const { read } = files.data
    let readBytes = 0
    files.data.read = function (buffer, at, length, offset) {
      const [first, last] = [Math.floor(offset / BLOCK), Math.floor((offset + length - 1) / BLOCK)]
      if ([bad, worse].some(block => first <= block! && block! <= last)) {
        throw new ThinfsError('IO_ERROR', 'no', { errno: 'EIO' })
      }
      readBytes += length
      read.call(this, buffer, at, length, offset)
    }
    const check = { nameOf: (id: number) => `v${id}`, pause: async () => {} }
    const [report, problems] = await checkData({
      ...check,
      metadata: pool.metadata,
      data: files.data,
      freeMeansHole: true,
    })
    t.same(report, { readBytes: 18 * BLOCK, unreadableBlocks: 2, strayBlocks: 0 })
    t.equal(readBytes, 18 * BLOCK, 'what is shared is read once, holes not at all')
    t.same(messages({ problems }), [
      `error: data block ${bad} cannot be read (EIO): block 6 of v1`,
      `error: data block ${worse} cannot be read (EIO): block 34 of v1`,
      `error: data block ${bad} cannot be read (EIO): block 6 of v2`,
      `error: data block ${worse} cannot be read (EIO): block 34 of v2`,
    ])
  },
)

t.test('free blocks that are no holes', async t => {
  const config = await makePool(t.testdir({}), { volumes: { web: { size: 8 * 2 ** 20 } } })
  const opened = await openPool(config)
  await fill(opened.volumes, 'web', 40)
  await opened.volumes.commit()
  const sound = await opened.volumes.check({ deep: true })
  t.match(sound, { problems: [], data: { readBytes: 40 * BLOCK, strayBlocks: 0 } })
  t.equal((await opened.volumes.check({})).data, null)
  const mapped = [...thinDump(config.metadata.path).devices.get(0)!.mappings.values()]
  const free = Math.max(...mapped.map(({ dataBlock }) => dataBlock)) + 100

  scribble(config, free, Buffer.from('old data'))
  scribble(config, free + 1, Buffer.from('old data'))
  scribble(config, free + 3, Buffer.alloc(4096))
  const wanted = [
    `error: data blocks ${free} to ${free + 1} are free but no hole: a new volume would show what is in it`,
    `warning: data block ${free + 3} is free but no hole: takes space for zeros`,
  ]
  const mounted = await opened.volumes.check({ deep: true })
  t.same(messages(mounted), wanted, 'mounted')
  t.equal(mounted.data?.strayBlocks, 2)
  await opened.close()
  const before = readFileSync(join(config.folder, 'journal'))
  t.same(messages(await checkPool(config, { deep: true })), wanted, 'not mounted')
  t.same(readFileSync(join(config.folder, 'journal')), before, 'nothing is changed')
  t.same(messages(await checkPool(config)), [], 'only when it is asked for')

  // Where free blocks may hold something there is nothing to find, and mapped ones are read all the
  // same.
  const keeps = { ...config, discards: 'nopassdown' } as const
  await (await openPool(keeps)).close()
  t.match(await checkPool(keeps, { deep: true }), {
    problems: [],
    data: { readBytes: 40 * BLOCK, strayBlocks: null },
  })
  // The next opening that passes discards down makes holes of them.
  await (await openPool(config)).close()
  t.match(await checkPool(config, { deep: true }), { problems: [], data: { strayBlocks: 0 } })
})

t.test('a pool in use goes on, and gives no false alarm', async t => {
  const config = await makePool(t.testdir({}), { volumes: { web: { size: 32 * 2 ** 20 } } })
  const { volumes, close } = await openPool(config)
  await fill(volumes, 'web', 500)
  // Trees of many nodes, so that a check takes many steps.
  for (let n = 0; n < 200; n++) await volumes.create({ name: `v${n}`, size: 512 })
  let checking = true
  let requests = 0
  const seen = new Set<string>()
  const use = async (t: Test): Promise<void> => {
    const { device } = volumes.find('web')!
    const content = Buffer.alloc(BLOCK)
    for (let n = 0; checking; n++) {
      content.fill(n)
      const block = (n * 37) % 500
      if (n % 3 === 0) await device.discard(block * BLOCK, 3 * BLOCK)
      await device.write(block * BLOCK + 512, BLOCK - 512, content, 0)
      if (n % 5 === 0) await volumes.commit()
      if (n % 50 === 10) await volumes.snapshot({ origin: 'web', name: `s${n}` })
      if (n % 50 === 40) await volumes.remove({ names: [`s${n - 30}`] })
      requests++
      const { check } = await volumes.status()
      if (check) seen.add(check.part)
      await new Promise(resolve => setImmediate(resolve))
    }
    t.pass()
  }
  const using = use(t)
  let most = 0
  for (let round = 0; round < 12; round++) {
    const before = requests
    t.same(messages(await volumes.check({ deep: true })), [], `round ${round}`)
    most = Math.max(most, requests - before)
  }
  checking = false
  await using
  t.ok(most > 4, `${most} requests were served while one check went on`)
  t.strictSame([...seen].sort(), ['data', 'metadata'], 'the status says how far it is')
  t.equal((await volumes.status()).check, null)
  const both = await Promise.all([volumes.check({ deep: true }), volumes.check({})])
  for (const report of both) t.same(report.problems, [])
  const late = volumes.check({ deep: true })
  const ended = t.rejects(late, { code: 'NOT_MOUNTED' })
  await close()
  await ended
  const progress: CheckProgress[] = []
  const onProgress = (step: CheckProgress): unknown => progress.push(step)
  t.same(messages(await checkPool(config, { deep: true, onProgress })), [])
  for (const part of ['metadata', 'data']) {
    const steps = progress.filter(step => step.part === part)
    t.ok(steps.every(({ done }, i) => i === 0 || done >= steps[i - 1]!.done))
    const { done, all } = steps.at(-1)!
    t.ok(done > all * 0.9 && done < all * 1.1, `${part}: ${done} of ${all}`)
  }
})

t.test('metadata from before one change that was durable is told of, and refused', async t => {
  const config = await makePool(t.testdir())
  const { volumes, close } = await openPool(config)
  await volumes.create({ name: 'first', size: BLOCK })
  const older = filesLeft(config, 'older')
  await volumes.create({ name: 'a', size: 16 * BLOCK })
  await fill(volumes, 'a', 1)
  await volumes.commit()
  const killed = filesLeft(config, 'killed')
  t.same(messages(await checkPool(killed)), [])
  copyFileSync(older.metadata.path, killed.metadata.path)
  const before = readFileSync(killed.data.path)
  t.match(messages(await checkPool(killed)), [
    /^error: .*metadata: the journal knows newer metadata/,
  ])
  await t.rejects(openPool(killed), { code: 'POOL_MISMATCH' })
  t.ok(readFileSync(killed.data.path).equals(before), 'nothing is punched')
  await close()
})
