// Goal: the exclusive space of volumes is counted rightly, as seldom as possible, and never for
// another volume than the one that was asked about. Method: random writes, snapshots and discards
// of volumes in memory, and a plain model: a map from virtual to data blocks for each; a count that
// is stopped between two slices while its volume goes and another gets its id.
import t from 'tap'
import { openFiles } from '../support/memory-pool.js'
import { Random } from '../support/random.js'
import { BLOCK, files, filled, turn } from '../support/thin-devices.js'
import { openTable } from '../support/volumes-on-disk.js'

const BLOCKS = 40

async function opened() {
  const memory = files(400)
  const { pool, clock } = await openFiles(memory)
  let content: string | null = null
  const volumes = openTable(pool, memory.metadata, {
    path: 'volumes.json',
    read: () => content,
    async replace(bytes) {
      content = Buffer.from(bytes).toString()
    },
  })
  return { pool, clock, volumes }
}

t.test('what a volume has for itself, and several together, as a plain model has it', async t => {
  const { volumes } = await opened()
  const random = new Random(7)
  /** The data that each block of each volume has: a number, which snapshots share. */
  const model = new Map<string, Map<number, number>>()
  let stamp = 0
  await volumes.create({ name: 'v0', size: BLOCKS * BLOCK })
  model.set('v0', new Map())
  for (let i = 0; i < 120; i++) {
    const name = random.of([...model.keys()])
    const { device } = volumes.find(name)!
    const block = random.below(BLOCKS)
    if (random.chance(0.6)) {
      await device.write(block * BLOCK, BLOCK, filled(BLOCK, 1), 0)
      model.get(name)!.set(block, ++stamp)
    } else if (random.chance(0.5)) {
      await device.discard(block * BLOCK, BLOCK)
      model.get(name)!.delete(block)
    } else if (model.size < 6) {
      const snap = `v${model.size}`
      await volumes.snapshot({ origin: name, name: snap })
      model.set(snap, new Map(model.get(name)))
    }
  }
  await volumes.commit()
  const owners = new Map<number, Set<string>>()
  for (const [name, blocks] of model) {
    for (const data of blocks.values()) owners.set(data, (owners.get(data) ?? new Set()).add(name))
  }
  const ofOnly = (names: string[]): number =>
    BLOCK * [...owners.values()].filter(all => [...all].every(name => names.includes(name))).length
  for (const { name, exclusive } of await volumes.list({ exclusive: true })) {
    t.equal(exclusive, ofOnly([name]), name)
  }
  const all = [...model.keys()]
  for (const names of [all, all.slice(0, 2), all.slice(2), [all[0]!, all[4]!]]) {
    t.same(await volumes.exclusive({ names }), { bytes: ofOnly(names) }, names.join())
  }
  await volumes.close()
})

t.test('it is counted once until a mapping changes', async t => {
  const { pool, volumes } = await opened()
  await volumes.create({ name: 'v', size: BLOCKS * BLOCK })
  const volume = volumes.find('v')!
  await volume.device.write(0, BLOCK, filled(BLOCK, 1), 0)
  const { mappings } = pool.metadata
  const { forEachExclusive } = mappings
  let walks = 0
  mappings.forEachExclusive = (...args) => {
    walks++
    return forEachExclusive.apply(mappings, args)
  }
  const both = [volumes.usage.exclusiveBytes(volume), volumes.usage.exclusiveBytes(volume)]
  t.same(await Promise.all(both), [BLOCK, BLOCK])
  t.equal(walks, 1)
  await volume.device.write(0, BLOCK, filled(BLOCK, 2), 0)
  t.equal(await volumes.usage.exclusiveBytes(volume), BLOCK)
  t.equal(walks, 1, 'a write in place changes no mapping')
  await volume.device.write(BLOCK, BLOCK, filled(BLOCK, 2), 0)
  t.equal(await volumes.usage.exclusiveBytes(volume), 2 * BLOCK)
  t.equal(walks, 2)
  await volumes.close()
})

t.test('a volume that goes is not counted on as the next one with its id', async t => {
  const { clock, volumes } = await opened()
  // More than one leaf, which is a piece of the work.
  const size = 300 * BLOCK
  for (const name of ['a', 'b']) await volumes.create({ name, size })
  const counts = {
    exclusiveBytes: () => volumes.usage.exclusiveBytes(volumes.find('a')!),
    exclusiveTogether: () => volumes.exclusive({ names: ['a', 'b'] }),
  }
  for (const [what, count] of Object.entries(counts)) {
    const { device, devId } = volumes.find('a')!
    await device.preallocate(0, size)
    let goOn = (): void => {}
    const held = new Promise<void>(resolve => {
      goOn = resolve
    })
    clock.lookMs = 1
    clock.yield = () => held
    const outcome = count().then(
      () => 'counted',
      err => err.code,
    )
    await turn()
    clock.lookMs = 0
    clock.yield = turn
    await volumes.remove({ names: ['a'] })
    await volumes.create({ name: 'a', size, devId })
    goOn()
    t.equal(await outcome, 'DEVICE_MISSING', what)
  }
  await volumes.close()
})
