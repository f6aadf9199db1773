// Goal: a pool that is full in data, in metadata, or in both, is never a dead end: to remove a
// volume, to discard, to roll back and to extend succeed, each of them alone, and what they free
// can be written to. Method: a pool in memory, filled until neither a write nor a snapshot is
// possible. (A host's full disk: test/mount/full-host.)
import t from 'tap'
import { checkMetadata } from '../../src/metadata/index.js'
import type { Volumes } from '../../src/volumes/index.js'
import { formatted, openFiles } from '../support/memory-pool.js'
import { openTable } from '../support/volumes-on-disk.js'

const BLOCK = 4096
const SIZE = 2 ** 17 * BLOCK

async function makePool(dataBlocks: number, metadataBlocks: number) {
  const files = formatted({ blockSectors: 8, dataBlocks, metadataBlocks })
  const { pool } = await openFiles(files)
  let content: string | null = null
  const table = {
    path: 'volumes.json',
    read: () => content,
    async replace(next: Uint8Array) {
      content = Buffer.from(next).toString()
    },
  }
  const volumes = openTable(pool, files.metadata, table)
  await volumes.create({ name: 'web', size: SIZE })
  await volumes.create({ name: 'db', size: SIZE })
  return { files, volumes }
}

async function write(volumes: Volumes, name: string, block: number): Promise<void> {
  await volumes.find(name)!.device.write(block * BLOCK, 512, Buffer.alloc(512, 1), 0)
}

/** Repeats `act` until it finds no space. */
async function untilFull(act: (i: number) => Promise<unknown>): Promise<void> {
  for (let i = 0; i < 5000; i++) {
    try {
      await act(i)
    } catch (err) {
      if ((err as { errno: string }).errno === 'ENOSPC') return
      throw err
    }
  }
  throw new Error('it is not full')
}

/** `web`, and what it was. */
async function makeWeb(volumes: Volumes): Promise<void> {
  await volumes.find('web')!.device.write(0, 96 * BLOCK, Buffer.alloc(96 * BLOCK, 1), 0)
  await volumes.snapshot({ origin: 'web', name: 'old' })
  for (let i = 0; i < 4; i++) await write(volumes, 'web', i)
}

async function fillData(volumes: Volumes): Promise<void> {
  await untilFull(i => write(volumes, 'db', 4 * i))
  t.equal(volumes.pool.space.data.nrWritable, 0)
}

/** To the last block, with nodes of `web` that snapshots keep. */
async function fillMetadata(volumes: Volumes): Promise<void> {
  for (let nr = 0; volumes.pool.space.metadata.hasRoom; nr++) {
    await volumes.snapshot({ origin: 'web', name: `s${nr}` })
    await volumes.find('web')!.device.discard((nr + 8) * BLOCK, BLOCK, false)
    await volumes.commit()
  }
}

const FILLS: Record<string, () => ReturnType<typeof makePool>> = {
  data: async () => {
    const made = await makePool(200, 256)
    await makeWeb(made.volumes)
    await fillData(made.volumes)
    return made
  },
  metadata: () => fullOfMappings(8192),
  'data and metadata': async () => {
    nrMappable ??= (await fullOfMappings(8192)).volumes.pool.metadata.nrAllocatedDataBlocks
    const made = await fullOfMappings(nrMappable)
    await fillData(made.volumes)
    await fillMetadata(made.volumes)
    return made
  },
}

/** Data blocks that can be mapped before the metadata is full. */
let nrMappable: number | undefined

/** Full of leaves that are `db`'s alone. */
async function fullOfMappings(dataBlocks: number): ReturnType<typeof makePool> {
  const made = await makePool(dataBlocks, 50)
  await makeWeb(made.volumes)
  await untilFull(i => write(made.volumes, 'db', 16 * i + 1))
  return made
}

const REMEDIES: Record<string, (volumes: Volumes) => Promise<void>> = {
  remove: async volumes => {
    const others = [...volumes.all()].map(({ name }) => name).filter(name => /^[st]\d/.test(name))
    await volumes.remove({ names: ['db', ...others] })
  },
  discard: async volumes => {
    await volumes.find('db')!.device.discard(0, SIZE, false)
  },
  'roll back': async volumes => {
    await volumes.rollback({ name: 'db', snapshot: 'old' })
  },
  extend: async volumes => {
    const { metadata, blockSize } = volumes.pool
    await volumes.extend({
      data: (metadata.nrDataBlocks + 64) * blockSize,
      metadata: 2 * metadata.nrMetadataBlocks * 4096,
    })
  },
}

for (const [what, fill] of Object.entries(FILLS)) {
  for (const [remedy, cure] of Object.entries(REMEDIES)) {
    t.test(`full in ${what}: ${remedy}`, async t => {
      const { files, volumes } = await fill()
      const code = what === 'data' ? 'NO_DATA_SPACE' : 'NO_METADATA_SPACE'
      await t.rejects(write(volumes, 'web', 5000), { code })
      if (what !== 'data') {
        const snapshot = volumes.snapshot({ origin: 'web', name: 'more' })
        await t.rejects(snapshot, { code: 'NO_METADATA_SPACE' })
        // What send reads is held all the same: it goes again.
        const { volumes: held } = await volumes.hold({ names: ['web'], identify: 'web' })
        await volumes.hidden.drop(volumes.hidden.find(held[0]!.file!)!.devId)
      }
      await cure(volumes)
      await volumes.commit()
      await write(volumes, 'web', 5000)
      await volumes.commit()
      t.equal(volumes.pool.mode, 'write')
      await volumes.snapshot({ origin: 'web', name: 'again' })
      await volumes.close()
      t.same(checkMetadata(files.metadata).problems, [])
    })
  }
}
