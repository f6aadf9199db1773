/**
 * Goal: the bytes are the kernel's. Method: the operations with which a kernel, or a model of it
 * that reproduces a kernel's image, made a fixture; then the whole stores are compared.
 */
import t from 'tap'
import type { DataBlock, DevId } from '../../src/base/index.js'
import { ThinMetadata } from '../../src/metadata/index.js'
import { MemoryStore } from '../support/memory-store.js'
import { fixture } from '../support/thin-tools.js'

const SIZE = 1024 * 4096
const one = 1 as DevId
const two = 2 as DevId

async function commit(metadata: ThinMetadata): Promise<void> {
  const sealed = metadata.seal()
  if (sealed === null) return
  await sealed.write()
  sealed.end()
  metadata.releaseData(sealed.freed)
}

/** Where two images differ: the first byte of each differing block. */
function differences(found: Buffer, wanted: Buffer): string[] {
  const list: string[] = []
  for (let block = 0; block < wanted.length / 4096; block++) {
    for (let i = block * 4096; i < (block + 1) * 4096; i++) {
      if (found[i] === wanted[i]) continue
      list.push(`block ${block} byte ${i % 4096}: ${found[i]}, wanted ${wanted[i]}`)
      break
    }
  }
  return list
}

t.test('fresh-format: format of 1024 blocks', async t => {
  const store = new MemoryStore(SIZE)
  ThinMetadata.format(store, { dataBlockSectors: 128 })
  t.same(differences(store.image, fixture('fresh-format')), [])
})

t.test('fresh-resumed: and 1024 data blocks', async t => {
  const store = new MemoryStore(SIZE)
  ThinMetadata.format(store, { dataBlockSectors: 128 })
  const metadata = ThinMetadata.open(store)
  metadata.growData(1024)
  await commit(metadata)
  t.same(differences(store.image, fixture('fresh-resumed')), [])
})

for (const [name, nrDataBlocks, nrWrites] of [
  ['golden-replay-1', 1024, 64],
  ['golden-replay-2', 16384, 1600],
] as const) {
  t.test(`${name}: a device, ${nrWrites} writes, a snapshot`, async t => {
    const store = new MemoryStore(SIZE)
    ThinMetadata.format(store, { dataBlockSectors: 128 })
    let metadata = ThinMetadata.open(store)
    metadata.growData(nrDataBlocks)
    await commit(metadata)
    metadata = ThinMetadata.open(store)
    metadata.createThin(one)
    await commit(metadata)
    metadata.setTransactionId(0, 1)
    await commit(metadata)
    for (let vblock = 0; vblock < nrWrites; vblock++) {
      metadata.mappings.insert(one, vblock, metadata.allocateData() as DataBlock, metadata.time)
    }
    await commit(metadata)
    metadata.createSnap(two, one)
    await commit(metadata)
    metadata.setTransactionId(1, 2)
    await commit(metadata)
    t.same(differences(store.image, fixture(name)), [])
  })
}
