/**
 * Goal: `thinfs delta` says what thin_delta says. Method: pools with random histories, in which
 * trees split, merge and come apart; Debian's thin_delta compares every two devices of them.
 */
// The trees are large, and the code that makes them has tests of its own.
import '../support/unverified.js'
import { spawnSync } from 'node:child_process'
import t, { type Test } from 'tap'
import type { DataBlock, DevId } from '../../src/base/index.js'
import { ThinMetadata } from '../../src/metadata/index.js'
import { type Change, changesBetween, deltaXml } from '../../src/streams/index.js'
import { MemoryStore } from '../support/memory-store.js'
import { Random } from '../support/random.js'
import { thinDumpXml, thinRestore, withImage } from '../support/thin-tools.js'

const BLOCKS = 200_000

async function commit(metadata: ThinMetadata): Promise<void> {
  const sealed = metadata.seal()
  if (sealed === null) return
  await sealed.write()
  sealed.end()
  metadata.releaseData(sealed.freed)
}

function fill(metadata: ThinMetadata, id: number, begin: number, length: number): void {
  for (let vblock = begin; vblock < begin + length; vblock++) {
    metadata.mappings.insert(
      id as DevId,
      vblock,
      metadata.allocateData() as DataBlock,
      metadata.time,
    )
  }
}

function emptyPool(): { store: MemoryStore; metadata: ThinMetadata } {
  const store = new MemoryStore(1024 * 4096)
  ThinMetadata.format(store, { dataBlockSectors: 128 })
  const metadata = ThinMetadata.open(store)
  metadata.growData(BLOCKS)
  return { store, metadata }
}

/** A pool of some devices that were snapshots of each other, and have changed since. */
async function randomPool(seed: number): Promise<MemoryStore> {
  const random = new Random(seed)
  const { store, metadata } = emptyPool()
  metadata.createThin(0 as DevId)
  fill(metadata, 0, random.below(300), random.between(1, 6000))
  await commit(metadata)
  let next = 1
  for (let step = 0; step < 25; step++) {
    const id = random.below(next)
    if (random.chance(0.3) && next < 6) metadata.createSnap(next++ as DevId, id as DevId)
    else if (random.chance(0.5)) fill(metadata, id, random.below(8000), random.between(1, 60))
    else {
      const begin = random.below(8000)
      metadata.mappings.removeRange(id as DevId, begin, begin + random.between(1, 1500))
    }
    if (random.chance(0.5)) await commit(metadata)
  }
  await commit(metadata)
  return store
}

/** What is printed for two devices, and what thin_delta prints. */
function compare(store: MemoryStore, left: number, right: number, path: string) {
  const metadata = ThinMetadata.open(store)
  const roots = [
    metadata.mappings.rootOf(left as DevId),
    metadata.mappings.rootOf(right as DevId),
  ] as const
  const { time, transactionId, dataBlockSectors: dataBlockSize, nrDataBlocks } = metadata
  const head = { time, transactionId, dataBlockSize, dataBlocks: nrDataBlocks }
  const all = [...changesBetween(store, roots, true)]
  const tool = spawnSync('thin_delta', ['--thin1', `${left}`, '--thin2', `${right}`, path], {
    encoding: 'utf8',
  })
  return {
    all,
    changed: [...changesBetween(store, roots, false)],
    found: [...deltaXml({ ...head, left, right }, all)].join(''),
    wanted: tool.stdout,
  }
}

const differs = ({ kind }: Change): boolean => kind !== 'same'

/** @param way ascending pairs, or descending ones */
function comparePairs(t: Test, store: MemoryStore, what: string, way: 1 | -1 = 1): void {
  withImage(store.image, path => {
    const ids = [...ThinMetadata.open(store).deviceIds()]
    for (const left of ids) {
      for (const right of ids) {
        if ((right - left) * way < 0) continue
        const { all, changed, found, wanted } = compare(store, left, right, path)
        t.equal(found === wanted && wanted !== '', true, `${what}: ${left} and ${right}`)
        t.strictSame(changed, all.filter(differs), `${what}: ${left} and ${right}, what differs`)
      }
    }
  })
}

t.test('random pools: as thin_delta, and as thin_restore makes them, without sharing', async t => {
  for (let seed = 1; seed <= 5; seed++) {
    const store = await randomPool(seed)
    comparePairs(t, store, `seed ${seed}`, seed % 2 === 0 ? 1 : -1)
    if (seed === 1) {
      const restored = thinRestore(thinDumpXml(store.image), 4 << 20)
      comparePairs(
        t,
        new MemoryStore(restored.length, { image: restored }),
        `seed ${seed}, restored`,
      )
    }
  }
})

t.test('trees of other heights, and of three levels', async t => {
  const { store, metadata } = emptyPool()
  metadata.createThin(0 as DevId)
  // Every other block first: leaves split in the middle, and there are more than a node can name.
  for (let vblock = 0; vblock < 90_000; vblock += 2) fill(metadata, 0, vblock, 1)
  await commit(metadata)
  for (let vblock = 1; vblock < 50_000; vblock += 2) fill(metadata, 0, vblock, 1)
  metadata.createSnap(1 as DevId, 0 as DevId)
  metadata.createSnap(2 as DevId, 0 as DevId)
  await commit(metadata)
  metadata.mappings.removeRange(1 as DevId, 2000, 80_000)
  fill(metadata, 2, 70_001, 1)
  fill(metadata, 2, 89_000, 3000)
  await commit(metadata)
  metadata.createThin(3 as DevId)
  fill(metadata, 3, 1000, 5)
  await commit(metadata)
  comparePairs(t, store, 'large')
})

t.test('what two trees share is not read', async t => {
  const { store, metadata } = emptyPool()
  metadata.createThin(0 as DevId)
  fill(metadata, 0, 0, 30_000)
  metadata.createSnap(1 as DevId, 0 as DevId)
  await commit(metadata)
  fill(metadata, 0, 12_345, 1)
  await commit(metadata)
  let reads = 0
  const read = store.read.bind(store)
  store.read = (...args) => {
    reads++
    read(...args)
  }
  const roots = [
    metadata.mappings.rootOf(0 as DevId),
    metadata.mappings.rootOf(1 as DevId),
  ] as const
  t.strictSame(
    [...changesBetween(store, roots, false)],
    [{ kind: 'different', begin: 12_345, length: 1 }],
  )
  t.ok(reads <= 8, `${reads} of more than 120 leaves`)
})
