// Goal: metadata that is damaged where everything hangs on it is not served to be written to,
// though thinfs wrote it last; damage further down shows in the status once it was met. Method: one
// bit of a block of a pool that was closed in order; thin_check agrees that it is damage.
import { readFileSync, writeFileSync } from 'node:fs'
import t, { type Test } from 'tap'
import { NODE, SUPERBLOCK } from '../../src/metadata/index.js'
import { openPool } from '../../src/volumes/index.js'
import { makePool } from '../support/pool-files.js'
import { thinCheck } from '../support/thin-tools.js'

const BLOCK = 65536
/** More mappings than three leaves have. */
const BLOCKS = 1000

/**
 * A pool whose volume has a mapping tree of two levels, and a function that spoils a block of it.
 */
async function made(t: Test) {
  const config = await makePool(t.testdir({}), { volumes: { web: { size: BLOCKS * BLOCK } } })
  const { volumes, close } = await openPool(config)
  const { device } = volumes.find('web')!
  const content = Buffer.alloc(512, 1)
  for (let block = 0; block < BLOCKS; block++) await device.write(block * BLOCK, 512, content, 0)
  await close()
  const sound = readFileSync(config.metadata.path)
  const spoil = (block: number): void => {
    const image = Buffer.from(sound)
    image[block * 4096 + 100]! ^= 1
    writeFileSync(config.metadata.path, image)
    t.not(thinCheck(image).status, 0, 'thin_check')
  }
  return { config, sound, spoil }
}

const u64 = (image: Buffer, at: number): number => Number(image.readBigUInt64LE(at))
/** The value of an entry of a node whose values are numbers. */
const valueIn = (image: Buffer, block: number, i: number): number => {
  const at = block * 4096
  return u64(image, at + NODE.size + 8 * image.readUInt32LE(at + NODE.at.maxEntries) + 8 * i)
}

t.test('a root that is damaged', async t => {
  const { config, sound, spoil } = await made(t)
  const { mappingRoot, detailsRoot, dataSpaceMap, metadataSpaceMap } = SUPERBLOCK.at
  for (const [what, block] of Object.entries({
    'top-level': u64(sound, mappingRoot),
    mapping: valueIn(sound, u64(sound, mappingRoot), 0),
    details: u64(sound, detailsRoot),
    'data index': u64(sound, dataSpaceMap + 16),
    'data overflow': u64(sound, dataSpaceMap + 24),
    'metadata index': u64(sound, metadataSpaceMap + 16),
    'metadata overflow': u64(sound, metadataSpaceMap + 24),
  })) {
    spoil(block)
    const damage = new RegExp(`\\b${block}: .*checksum`)
    const refused = { code: 'METADATA_CORRUPT', message: damage }
    await t.rejects(openPool(config), refused, what)
    t.equal(readFileSync(config.metadata.path)[block * 4096 + 100]! ^ 1, sound[block * 4096 + 100])
    // To be read it is opened where that can be done at all.
    const read = await openPool(config, { readOnly: true }).catch((err: unknown) => err)
    if (read instanceof Error) t.match(read, { code: 'METADATA_CORRUPT' }, what)
    else if (typeof read === 'object' && read !== null && 'volumes' in read) {
      const { volumes, close } = read as Awaited<ReturnType<typeof openPool>>
      t.match(await volumes.status(), { refusal: damage }, what)
      await close()
    }
  }
})

t.test('a leaf that is damaged', async t => {
  const { config, sound, spoil } = await made(t)
  const root = valueIn(sound, u64(sound, SUPERBLOCK.at.mappingRoot), 0)
  const nrLeaves = sound.readUInt32LE(root * 4096 + NODE.at.nrEntries)
  // The last one is looked at for how much of the volume is mapped.
  const leaf = valueIn(sound, root, nrLeaves - 2)
  const vblock = u64(sound, root * 4096 + NODE.size + 8 * (nrLeaves - 2))
  spoil(leaf)
  const { volumes, close } = await openPool(config)
  t.same((await volumes.status()).warnings, [])
  const found = Buffer.alloc(512)
  const { device } = volumes.find('web')!
  t.ok(device.read(0, 512, found, 0))
  t.throws(() => device.read(vblock * BLOCK, 512, found, 0), { code: 'METADATA_CORRUPT' })
  const damage = new RegExp(`metadata: damaged: metadata block ${leaf}: .*; thinfs check`)
  t.match((await volumes.status()).warnings, [damage])
  await close()
})
