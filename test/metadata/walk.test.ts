// Goal: visiting all mappings of a large device does not cost the next lookup anything. Method: a
// cache smaller than the tree, and a store that counts what is read.
import t from 'tap'
import type { DataBlock, DevId } from '../../src/base/index.js'
import { ThinMetadata } from '../../src/metadata/index.js'
import { MemoryStore } from '../support/memory-store.js'
import { SparseStore } from '../support/sparse-store.js'

const COUNT = 40_000
const CACHE_BLOCKS = 32
const id = 1 as DevId

t.test('a walk over more leaves than are kept leaves what was kept', async t => {
  const written = new MemoryStore(2048 * 4096)
  ThinMetadata.format(written, { dataBlockSectors: 128 })
  const writer = ThinMetadata.open(written)
  writer.growData(COUNT)
  writer.createThin(id)
  for (let vblock = 0; vblock < COUNT; vblock++) {
    writer.mappings.insert(id, vblock, writer.allocateData() as DataBlock, writer.time)
  }
  await writer.seal()!.write()

  const store = new SparseStore('metadata', written.image)
  const metadata = ThinMetadata.open(store, { cacheBlocks: CACHE_BLOCKS })
  const mapping = { dataBlock: 0 as DataBlock, time: 0 }
  t.ok(metadata.mappings.find(id, COUNT / 2, mapping))
  const readsOf = (run: () => void): number => {
    const before = store.reads
    run()
    return store.reads - before
  }
  let nr = 0
  let nrWrong = 0
  const walk = (): void =>
    metadata.mappings.forEach(id, 0, COUNT, (vblock, dataBlock) => {
      if (vblock !== nr++ || dataBlock !== vblock) nrWrong++
    })
  t.ok(readsOf(walk) > 4 * CACHE_BLOCKS, 'leaves were read')
  t.equal(nr, COUNT)
  t.equal(nrWrong, 0)
  t.equal(
    readsOf(() => metadata.mappings.find(id, COUNT / 2, mapping)),
    0,
  )
})
