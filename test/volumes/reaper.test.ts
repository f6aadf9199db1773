// Goal: the space of a removed volume goes back once and wholly, whatever cuts the work short, and
// no volume of a later one with its id is touched. Method: volumes of a pool in memory whose work
// is done slice by slice, as the test lets it.
import t from 'tap'
import { checkMetadata } from '../../src/metadata/index.js'
import type { Volumes } from '../../src/volumes/index.js'
import type { TableFile } from '../../src/volumes/volume-table.js'
import {
  formatted,
  killed,
  type MemoryFiles,
  openFiles,
  type TestClock,
} from '../support/memory-pool.js'
import { turn } from '../support/thin-devices.js'
import { openTable } from '../support/volumes-on-disk.js'

const BLOCK = 4096
/** Enough mapping trees of two levels for many slices. */
const NR_BLOCKS = 20_000

class Names implements TableFile {
  readonly path = 'volumes.json'
  content: string | null = null
  fails = false
  read(): string | null {
    return this.content
  }
  async replace(content: Uint8Array): Promise<void> {
    if (this.fails) throw Object.assign(new Error('full'), { code: 'ENOSPC' })
    this.content = Buffer.from(content).toString()
  }
}

interface Opened {
  memory: MemoryFiles
  clock: TestClock
  names: Names
  volumes: Volumes
  /** Lets so many slices pass; Infinity: all. */
  allow(slices: number): void
  /** Resolves when somebody waits for a slice. */
  waits(): Promise<void>
  reported: string[]
}

async function open(memory: MemoryFiles, names = new Names()): Promise<Opened> {
  const { pool, clock } = await openFiles(memory)
  const reported: string[] = []
  const volumes = openTable(pool, memory.metadata, names, what => reported.push(what))
  let allowed = Number.POSITIVE_INFINITY
  const waiting: (() => void)[] = []
  clock.lookMs = 1
  clock.yield = async isUrgent => {
    await turn()
    // A commit is none of those slices.
    if (isUrgent) return
    while (allowed <= 0) await new Promise<void>(resolve => waiting.push(resolve))
    allowed--
  }
  return {
    ...{ memory, clock, names, volumes, reported },
    allow(slices) {
      allowed = slices
      for (const go of waiting.splice(0)) go()
    },
    async waits() {
      while (waiting.length === 0) await turn()
    },
  }
}

async function withVolume(): Promise<Opened> {
  const opened = await open(formatted({ blockSectors: 8, dataBlocks: 1.2 * NR_BLOCKS }))
  const volume = await opened.volumes.newVolumes.make('a', NR_BLOCKS * BLOCK)
  // Not in slices: that is not what is looked at.
  opened.clock.lookMs = 0
  await volume.device.preallocate(0, NR_BLOCKS * BLOCK)
  await opened.volumes.commit()
  opened.clock.lookMs = 1
  return opened
}

async function gone({ volumes }: Opened): Promise<void> {
  for (let i = 0; volumes.byDevId(0) && i < 10_000; i++) await turn()
}

async function isEmpty(opened: Opened): Promise<string[]> {
  const { volumes, memory } = opened
  await gone(opened)
  await volumes.commit()
  const { nrAllocatedDataBlocks: nr } = volumes.pool.metadata
  return [
    ...(nr > 0 ? [`${nr} blocks are taken`] : []),
    ...checkMetadata(memory.metadata).problems.map(String),
  ]
}

t.test('killed after any slice, the next opening goes on', async t => {
  for (const slices of [0, 1, 3, 7]) {
    const first = await withVolume()
    first.allow(slices)
    const removing = first.volumes.remove({ names: ['a'] })
    removing.catch(() => {})
    await first.waits()
    const left = first.volumes.pool.metadata.nrAllocatedDataBlocks
    t.ok(left > 0, 'it was in the middle')
    const names = new Names()
    names.content = first.names.content
    const next = await open(killed(first.memory), names)
    t.equal(next.volumes.find('a'), undefined)
    t.same(await isEmpty(next), [], `after ${slices} slices`)
    await next.volumes.close()
  }
})

t.test('who closes the pool waits for a slice, not for the volume', async t => {
  const first = await withVolume()
  first.allow(1)
  const removing = first.volumes.remove({ names: ['a'] })
  await first.waits()
  const closing = first.volumes.close()
  first.allow(1)
  await Promise.allSettled([removing, closing])
  const { metadata } = first.volumes.pool
  t.ok(metadata.nrAllocatedDataBlocks > 0)
  const next = await open(first.memory, first.names)
  t.same(await isEmpty(next), [])
})

t.test('names that cannot be written leave the volume on its way, for the next time', async t => {
  const first = await withVolume()
  first.allow(0)
  const removing = first.volumes.remove({ names: ['a'] })
  removing.catch(() => {})
  await first.waits()
  first.names.fails = true
  first.allow(Number.POSITIVE_INFINITY)
  await Promise.allSettled([removing])
  t.equal(first.volumes.find('a'), undefined)
  t.match(first.reported.join(), /not yet reclaimed: .*full/)
  first.names.fails = false
  const next = await open(killed(first.memory), first.names)
  t.same(await isEmpty(next), [])
})

t.test('two removals at once give back each their own, and what they share', async t => {
  const opened = await withVolume()
  const { volumes } = opened
  await volumes.snapshot({ origin: 'a', name: 'b' })
  opened.allow(0)
  const removing = [volumes.remove({ names: ['a'] }), volumes.remove({ names: ['b'] })]
  for (let turns = 0; turns < 200; turns++) {
    opened.allow(1)
    await turn()
  }
  opened.allow(Number.POSITIVE_INFINITY)
  await Promise.all(removing)
  t.same(await isEmpty(opened), [])
})
