// Goal: metadata blocks have their space on the host before they are needed, and a host that had no
// room is asked again. Method: a store that sets space aside as long as its disk has some, and a
// plain model of which bytes have theirs.
import t from 'tap'
import { bytes, KIB, MIB, SYSTEM_CLOCK } from '../../src/base/index.js'
import { DataBlocks } from '../../src/device/index.js'
import { ThinMetadata } from '../../src/metadata/index.js'
import { HostSpace } from '../../src/pool/host-space.js'
import { MemoryStore } from '../support/memory-store.js'
import { failure } from '../support/thin-devices.js'

const NR_BLOCKS = 2048

function host(options: { room?: number; reserves?: boolean; errno?: string } = {}) {
  const { reserves = true, errno = 'ENOSPC' } = options
  const disk = { room: options.room ?? Number.POSITIVE_INFINITY }
  /** Metadata blocks that have their space. */
  const secured = new Set<number>()
  const store = new MemoryStore(NR_BLOCKS * 4 * KIB, { path: 'metadata' })
  ThinMetadata.format(store, { dataBlockSectors: 128 })
  if (reserves) {
    Object.assign(store, {
      reserve(offset: number, length: number): boolean {
        if (length > disk.room) throw failure(errno)
        disk.room -= length
        for (let at = offset; at < offset + length; at += 4 * KIB) secured.add(at / (4 * KIB))
        return true
      },
    })
  }
  const data = new MemoryStore(16 * MIB)
  const found = { available: 0 }
  Object.assign(data, { hostRoom: () => ({ ...found, allocated: 3 * MIB }) })
  const listener = { released: () => {}, refused: () => {} }
  const blocks = new DataBlocks(
    data,
    { blockSize: 64 * KIB, freeMeansHole: true, clock: SYSTEM_CLOCK },
    listener,
  )
  const metadata = ThinMetadata.open(store)
  return { disk, secured, found, metadata, space: new HostSpace(blocks, store, metadata) }
}

t.test('space is set aside for more blocks than a commit may take', async t => {
  const { secured, metadata, space } = host()
  for (const count of [1, 200, 255, 256, 600]) {
    t.equal(space.secures(count), true)
    // Any of the blocks below the end may be in use: so many of the others are left.
    const free = secured.size - metadata.nrAllocatedMetadataBlocks
    t.ok(free > count, `${free} have space, ${count} are wanted`)
  }
  t.equal(space.secures(NR_BLOCKS), true, 'no more than there are')
  t.equal(secured.size, NR_BLOCKS)
  t.equal(space.metadataFull, null)
})

t.test('a full disk is told of, and asked again', async t => {
  const { disk, secured, space } = host({ room: MIB })
  t.equal(space.secures(100), true)
  t.equal(secured.size, 256)
  t.equal(space.secures(300), false)
  t.match(space.metadataFull, /host's disk is full: ENOSPC/)
  t.equal(space.secures(100), true, 'for fewer there is enough')
  disk.room = MIB
  t.equal(space.secures(300), true)
  t.equal(space.metadataFull, null)
})

t.test('where space cannot be set aside nothing is waited for', async t => {
  t.equal(host({ reserves: false }).space.secures(NR_BLOCKS), true, 'a store that cannot')
  const { space } = host({ room: 0, errno: 'EIO' })
  t.equal(space.secures(1), true, 'a disk that fails does so again when it is written to')
  t.equal(space.metadataFull, null)
})

t.test('a refused write of data counts until the host has more room', async t => {
  const { found, space } = host()
  t.equal(space.dataFull, null)
  found.available = 5 * MIB
  space.refused(new Error('ENOSPC: write'))
  t.match(space.dataFull, /host's disk is full: ENOSPC: write/)
  t.equal(space.hasMore, false)
  found.available = 6 * MIB - 1
  t.equal(space.hasMore, false)
  found.available = 6 * MIB
  t.equal(space.hasMore, true)
  space.dataCame()
  t.equal(space.dataFull, null)
  t.equal(space.availableForData(bytes(MIB)), 8 * MIB, 'what the file has and nobody uses counts')
  t.equal(space.availableForData(bytes(4 * MIB)), 6 * MIB)
})
