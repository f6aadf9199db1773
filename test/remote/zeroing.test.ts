// Goal: a range that is punched is never seen as it was, whenever the process dies. Method: the
// memory of the cache as a process leaves it that dies between two steps of a punch.
import { closeSync } from 'node:fs'
import t, { type Test } from 'tap'
import { bytes, KIB, MIB } from '../../src/base/index.js'
import { CacheMemory, RemoteStore } from '../../src/remote/index.js'
import { ManualClock, TimedDisk } from '../support/timed-disk.js'

const SLOT = 64 * KIB

interface Left {
  clock: ManualClock
  disk: TimedDisk
  store: RemoteStore
  /** What two slots from the start read as. */
  wanted: Buffer
}

/**
 * The next process, where one died that had noted a punch of two slots and not blanked the cache.
 */
async function afterDeath(t: Test): Promise<Left> {
  const clock = new ManualClock()
  const disk = new TimedDisk(MIB, { perRequest: 1, bytesPerMs: 1e6 }, clock)
  disk.image.fill(7)
  const cache = CacheMemory.create(MIB)
  t.teardown(() => closeSync(cache))
  const open = async (): Promise<RemoteStore> => {
    const opening = RemoteStore.open({ disk, cache, granule: SLOT, clock })
    await clock.until(opening)
    return opening
  }
  const first = await open()
  const found = Buffer.alloc(2 * SLOT)
  await clock.until(first.readLater(found, 0, found.length, bytes(0)))
  // One page is newer than that: a write after the punch, which no flush has covered either.
  await first.write(Buffer.alloc(4 * KIB, 9), 0, 4 * KIB, bytes(SLOT))
  new CacheMemory(cache, disk).noteZeroed(0, 2 * SLOT)

  const wanted = Buffer.alloc(2 * SLOT)
  wanted.fill(9, SLOT, SLOT + 4 * KIB)
  return { clock, disk, store: await open(), wanted }
}

async function read({ clock, store }: Left): Promise<Buffer> {
  const found = Buffer.alloc(2 * SLOT)
  if (!store.readNow(found, 0, found.length, bytes(0))) {
    await clock.until(store.readLater(found, 0, found.length, bytes(0)))
  }
  return found
}

t.test('noted, and the cache still has what was there', async t => {
  const left = await afterDeath(t)
  const { clock, disk, store, wanted } = left
  t.equal(store.nextData(bytes(0)), SLOT)
  t.ok((await read(left)).equals(wanted), 'zeros, and what was written')
  await clock.until(store.sync())
  t.ok(disk.image.subarray(0, 2 * SLOT).equals(wanted), 'on the disk as well')
})

t.test('zeros that the disk loses again before a flush', async t => {
  const left = await afterDeath(t)
  left.disk.image.fill(7)
  t.ok((await read(left)).equals(left.wanted), 'are not read from it')
})
