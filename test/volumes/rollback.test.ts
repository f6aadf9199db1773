/**
 * Goal: a rollback, and a snapshot of several volumes, are done or not done, whatever is cut off in
 * the middle. Method: the power goes, or the process is killed, at each event of theirs; what is
 * found then is one of the two.
 */
import { createHash } from 'node:crypto'
import t, { type Test } from 'tap'
import { KIB } from '../../src/base/index.js'
import { ThinMetadata } from '../../src/metadata/index.js'
import type { Volumes } from '../../src/volumes/index.js'
import { MemoryStore } from '../support/memory-store.js'
import { type DiskState, PowerDisk, SparseImage } from '../support/power-disk.js'
import { PowerCuts } from '../support/power-states.js'
import { Random } from '../support/random.js'
import { type Opened, openVolumes, readVolumes, reaped } from '../support/volumes-on-disk.js'

const SIZE = 64 * KIB

function emptyDisk(dataBlocks = 128): DiskState {
  const metadata = new MemoryStore(128 * 4096)
  ThinMetadata.format(metadata, { dataBlockSectors: 8 })
  return {
    metadata: new SparseImage(metadata.image),
    data: SparseImage.ofHoles(dataBlocks * 4096),
    journal: Buffer.alloc(0),
    table: null,
    label: null,
    boot: 1,
  }
}

async function write(volumes: Volumes, name: string, value: number): Promise<void> {
  await volumes.find(name)!.device.write(0, SIZE / 2, Buffer.alloc(SIZE / 2, value), 0)
  await volumes.commit()
}

/** `web`, of 2s, and its snapshot `old`, of 1s; and `db`. */
async function madePool(
  seed: number,
  dataBlocks?: number,
): Promise<{ disk: PowerDisk; opened: Opened }> {
  const disk = new PowerDisk(emptyDisk(dataBlocks), new Random(seed))
  const opened = await openVolumes(disk.open())
  const { volumes } = opened
  await volumes.create({ name: 'web', size: SIZE })
  await write(volumes, 'web', 1)
  await volumes.snapshot({ origin: 'web', name: 'old' })
  await write(volumes, 'web', 2)
  await volumes.create({ name: 'db', size: SIZE })
  await write(volumes, 'db', 3)
  return { disk, opened }
}

/** Names, each with what is in it. */
function contentOf(opened: Opened): string {
  const found = [...readVolumes(opened)].map(([name, { content }]) => {
    const hash = createHash('sha256').update(content).digest('hex').slice(0, 8)
    return `${name} ${hash}`
  })
  return found.sort().join(', ')
}

async function isOneOf(t: Test, disk: PowerDisk, states: readonly string[], what: string) {
  const opened = await openVolumes(disk.open())
  const found = contentOf(opened)
  t.equal(states.includes(found), true, `${what}: ${found}`)
  await reaped(opened)
  t.same((await opened.volumes.check()).problems, [], `${what}: sound`)
  await opened.volumes.close()
  return found
}

const CHANGES: Record<string, (volumes: Volumes) => Promise<unknown>> = {
  'a rollback': volumes => volumes.rollback({ name: 'web', snapshot: 'old', keep: 'before' }),
  'a rollback that keeps nothing': volumes => volumes.rollback({ name: 'web', snapshot: 'old' }),
  'a snapshot of all': volumes =>
    volumes.snapshotAll({ origins: ['web', 'db', 'old'], suffix: '@now' }),
}

for (const [what, change] of Object.entries(CHANGES)) {
  t.test(`${what} is done, or it is not`, async t => {
    const { disk, opened } = await madePool(1)
    const before = contentOf(opened)
    const begin = disk.events.length
    await change(opened.volumes)
    const end = disk.events.length
    const after = contentOf(opened)
    t.not(before, after)
    await opened.volumes.close()
    const cuts = new PowerCuts(disk)
    const found = new Set<string>()
    for (let events = begin; events <= end; events++) {
      const random = new Random(events)
      const cut = new PowerDisk(cuts.state(events, random), random)
      found.add(await isOneOf(t, cut, [before, after], `power cut after ${events - begin}`))
    }
    t.equal(found.size, 2, 'both were found')
    const last = new PowerDisk(cuts.state(end, new Random(1)), new Random(1))
    await isOneOf(t, last, [after], 'what was acknowledged stays')

    for (let events = 1; events <= end - begin; events++) {
      const { disk, opened } = await madePool(1)
      disk.kill(events)
      const work = change(opened.volumes)
      work.catch(() => {})
      await Promise.race([work, disk.death]).catch(() => {})
      disk.kill()
      await isOneOf(t, disk, [before, after], `killed in event ${events}`)
    }
  })
}

t.test('a rollback can be rolled back, and is refused where it may not be', async t => {
  const { opened } = await madePool(1)
  const { volumes } = opened
  const before = contentOf(opened).split(', ')
  const web = volumes.find('web')!
  volumes.opened(web, 1)
  const request = { name: 'web', snapshot: 'old', keep: 'before' }
  await t.rejects(volumes.rollback(request), { code: 'VOLUME_BUSY' })
  volumes.released(web, 1)
  await t.rejects(volumes.rollback({ ...request, keep: 'db' }), { code: 'VOLUME_EXISTS' })
  await t.rejects(volumes.rollback({ ...request, snapshot: 'none' }), { code: 'VOLUME_MISSING' })
  await t.rejects(volumes.rollback({ ...request, snapshot: 'web' }), { code: 'BAD_ARGUMENT' })
  await t.rejects(volumes.rollback({ ...request, name: 'none' }), { code: 'VOLUME_MISSING' })
  t.strictSame(contentOf(opened).split(', '), before, 'nothing was changed')

  const { mode, uid } = web.entry
  t.match(await volumes.rollback(request), { name: 'web', origin: 'old', size: SIZE })
  t.match(volumes.find('web')!.entry, { mode, uid })
  await volumes.rollback({ name: 'web', snapshot: 'before' })
  await volumes.remove({ names: ['before'] })
  await reaped(opened)
  t.strictSame(contentOf(opened).split(', '), before)
  await volumes.close()
})

t.test('snapshots of several volumes are refused as a whole', async t => {
  const { opened } = await madePool(1)
  const { volumes } = opened
  await volumes.snapshot({ origin: 'db', name: 'db@now' })
  const before = contentOf(opened)
  const request = { origins: ['web', 'db'], suffix: '@now' }
  await t.rejects(volumes.snapshotAll(request), { code: 'VOLUME_EXISTS' })
  await t.rejects(volumes.snapshotAll({ origins: ['web', 'none'], suffix: '@x' }), {
    code: 'VOLUME_MISSING',
  })
  await t.rejects(volumes.snapshotAll({ origins: ['web'], suffix: '/' }), { code: 'BAD_NAME' })
  t.equal(contentOf(opened), before)
  const { transactionId } = volumes.pool.metadata
  await volumes.snapshotAll({ origins: ['web', 'old', 'web'], suffix: '@x' })
  t.equal(volumes.pool.metadata.transactionId, transactionId + 1, 'one transaction')
  t.strictSame(
    [...volumes.all()].map(({ name }) => name).filter(name => name.endsWith('@x')),
    ['web@x', 'old@x'],
  )
  await volumes.close()
})

t.test('a pool without room in its metadata is rolled back, and has some then', async t => {
  const { opened } = await madePool(1, 4096)
  const { volumes } = opened
  await volumes.create({ name: 'large', size: 2 ** 40 })
  await volumes.snapshot({ origin: 'large', name: 'empty' })
  const { device } = volumes.find('large')!
  // Blocks that are far from each other fill leaves; each snapshot has those copied.
  const fill = async (): Promise<void> => {
    for (let n = 0; ; n++) {
      await device.write(n * 4096, 4096, Buffer.alloc(4096, 5), 0)
      if (n % 3 === 2) await volumes.snapshot({ origin: 'large', name: `large@${n}` })
    }
  }
  await t.rejects(fill(), { code: 'NO_METADATA_SPACE' })
  await t.rejects(volumes.rollback({ name: 'large', snapshot: 'empty', keep: 'full' }), {
    code: 'NO_METADATA_SPACE',
  })
  await volumes.rollback({ name: 'large', snapshot: 'empty' })
  t.equal(volumes.infos.mappedBytes(volumes.find('large')!), 0)
  const names = [...volumes.all()].map(({ name }) => name).filter(name => /^large@/.test(name))
  await volumes.remove({ names })
  await volumes.find('large')!.device.write(0, 4096, Buffer.alloc(4096, 6), 0)
  t.same((await volumes.check()).problems, [])
  await volumes.close()
})
