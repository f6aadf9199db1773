// Goal: a range that is punched is never seen as it was, whenever the process dies. Method: the memory of
// the cache as a process leaves it that dies between two steps of a punch.
import { closeSync } from 'node:fs'
import t from 'tap'
import { bytes, KIB, MIB } from '../../src/base/index.js'
import { CacheMemory, RemoteStore } from '../../src/remote/index.js'
import { ManualClock, TimedDisk } from '../support/timed-disk.js'

const SLOT = 64 * KIB

t.test('noted, and the cache still has what was there', async t => {
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

  const second = await open()
  t.equal(second.nextData(bytes(0)), SLOT)
  if (!second.readNow(found, 0, found.length, bytes(0))) {
    await clock.until(second.readLater(found, 0, found.length, bytes(0)))
  }
  const wanted = Buffer.alloc(2 * SLOT)
  wanted.fill(9, SLOT, SLOT + 4 * KIB)
  t.ok(found.equals(wanted), 'zeros, and what was written')
  await clock.until(second.sync())
  t.ok(disk.image.subarray(0, 2 * SLOT).equals(wanted), 'on the disk as well')
})
