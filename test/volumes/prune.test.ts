// Goal: what is pruned is what the rules leave, of the snapshots that may go, and nothing else
// goes. Method: volumes of a pool in memory.
import t from 'tap'
import type { Volumes } from '../../src/volumes/index.js'
import { formatted, openFiles } from '../support/memory-pool.js'
import { openTable } from '../support/volumes-on-disk.js'

const DAY = 86_400

async function openPool(): Promise<Volumes> {
  const files = formatted({ blockSectors: 128, dataBlocks: 64 })
  const { pool } = await openFiles(files)
  let table: string | null = null
  return openTable(pool, files.metadata, {
    path: 'volumes.json',
    read: () => table,
    replace: async content => {
      table = Buffer.from(content).toString()
    },
  })
}

/** A snapshot of `origin`, made so many days after 1970. */
async function snapshot(volumes: Volumes, origin: string, name: string, day: number) {
  await volumes.snapshot({ origin, name })
  const volume = volumes.find(name)!
  volume.entry = { ...volume.entry, created: day * DAY + DAY / 2 }
}

const namesOf = (volumes: Volumes): string[] => [...volumes.all()].map(({ name }) => name).sort()

async function madePool(): Promise<Volumes> {
  const volumes = await openPool()
  await volumes.create({ name: 'web', size: 65_536 })
  await volumes.create({ name: 'webs@1', size: 65_536 })
  for (let day = 1; day <= 5; day++) await snapshot(volumes, 'web', `web@${day}`, day)
  await snapshot(volumes, 'web@5', 'web@5@copy', 6)
  await snapshot(volumes, 'web', 'vm1', 0)
  return volumes
}

t.test('only snapshots with the name of the volume go, and not those that are used', async t => {
  const volumes = await madePool()
  // What was rolled back is another device: the name tells whose snapshots they are.
  await volumes.rollback({ name: 'web', snapshot: 'web@5', keep: 'web@before' })
  const before = volumes.find('web@before')!
  before.entry = { ...before.entry, created: 0 }
  const open = volumes.find('web@2')!
  volumes.opened(open, 1)
  const request = { name: 'web', except: ['web@1'], last: 1, daily: 2 }
  const names = namesOf(volumes)
  const { transactionId } = volumes.pool.metadata
  const dry = await volumes.prune({ ...request, dryRun: true })
  t.strictSame(namesOf(volumes), names, 'a dry run removes nothing')
  t.equal(volumes.pool.metadata.transactionId, transactionId)
  const judged = await volumes.prune(request)
  t.strictSame(judged, dry, 'and says what would go')
  t.strictSame(
    judged.map(({ name, kept, busy }) => [name, busy ?? kept.join(', ')]),
    [
      ['web@5', 'last, daily'],
      ['web@4', 'daily'],
      ['web@3', ''],
      ['web@2', 'web@2: it is open'],
      ['web@1', 'in pool.yaml'],
      ['web@before', ''],
    ],
  )
  const left = names.filter(name => name !== 'web@3' && name !== 'web@before')
  t.strictSame(namesOf(volumes), left)
  t.equal(volumes.pool.metadata.transactionId, transactionId + 3, 'one commit for both names')
  volumes.released(open, 1)
  await volumes.prune({ name: 'web', except: [], last: 1 })
  t.strictSame(namesOf(volumes), ['vm1', 'web', 'web@5', 'web@5@copy', 'webs@1'])
  const judgedAgain = await volumes.prune({ name: 'web@5', except: [], yearly: 1 })
  t.match(judgedAgain, [{ name: 'web@5@copy', kept: ['yearly'] }, { name: 'web' }])
  t.same((await volumes.check()).problems, [])
  await volumes.close()
})

t.test('snapshots with names of their own are told, and stay', async t => {
  const volumes = await madePool()
  const judged = await volumes.prune({ name: 'web', except: [], last: 1 })
  t.strictSame(judged.at(-1), {
    ...{ name: 'vm1', created: 0.5 * DAY, busy: null },
    kept: ['not named web@…'],
  })
  const late = volumes.find('web@5')!
  late.entry = { ...late.entry, created: null }
  t.match(await volumes.prune({ name: 'web', except: [], last: 1 }), [
    { name: 'vm1' },
    { name: 'web@5', kept: ['age unknown'] },
  ])
  await volumes.close()
})

t.test('nothing to keep, and no such volume, are refused', async t => {
  const volumes = await madePool()
  const names = namesOf(volumes)
  for (const rules of [{}, { last: 0 }, { daily: -1 }]) {
    const pruning = volumes.prune({ name: 'web', except: [], ...rules })
    await t.rejects(pruning, { code: 'BAD_ARGUMENT' })
  }
  await t.rejects(volumes.prune({ name: 'wep', except: [], last: 1 }), { code: 'VOLUME_MISSING' })
  // Where only streams are received there is no volume of that name.
  t.match(await volumes.prune({ name: 'webs', except: [], last: 1 }), [{ name: 'webs@1' }])
  t.strictSame(namesOf(volumes), names)
  await volumes.close()
})
