/**
 * Goal: leaks are given back where nothing else is wrong, and needs_check goes with them. Method:
 * leaks are planted in the bitmaps of a pool; thin_check, which is not ours, says that they are
 * there, and that they are gone.
 */

import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { crc32c } from '@node-rs/crc32'
import t, { type Test } from 'tap'
import { SALT } from '../../src/metadata/index.js'
import { done, refused, run, thinfs } from './command-line.js'

async function makePool(t: Test): Promise<{ pool: string; metadata: string }> {
  const pool = join(t.testdir({}), 'pool')
  await done(t, 'init', pool, '--data-size', '1G', '--volume', 'web=10G')
  return { pool, metadata: join(pool, 'metadata') }
}

/** Changes a block of metadata, and makes its checksum right again. */
function change(path: string, nr: number, salt: number, edit: (block: Buffer) => void): void {
  const image = readFileSync(path)
  const block = image.subarray(nr * 4096, (nr + 1) * 4096)
  edit(block)
  block.writeUInt32LE((~crc32c(block.subarray(4)) ^ salt) >>> 0, 0)
  writeFileSync(path, image)
}

/** The first bitmap of a map: docs/FORMAT.md. */
function bitmapOf(path: string, map: 'data' | 'metadata'): number {
  const image = readFileSync(path)
  const root = Number(image.readBigUInt64LE((map === 'data' ? 64 : 192) + 16)) * 4096
  return Number(image.readBigUInt64LE(root + (map === 'data' ? 1376 : 16)))
}

/** Gives blocks [begin, begin + 4 * count) of a map one owner each, which they do not have. */
const leak = (path: string, map: 'data' | 'metadata', begin: number, count: number): void =>
  change(path, bitmapOf(path, map), SALT.bitmap, block =>
    block.fill(0xaa, 16 + begin / 4, 16 + begin / 4 + count),
  )

const setNeedsCheck = (path: string): void =>
  change(path, 0, SALT.superblock, block => block.writeUInt32LE(1, 4))

t.test('leaks of both maps, with needs_check', async t => {
  const { pool, metadata } = await makePool(t)
  leak(metadata, 'metadata', 400, 3)
  leak(metadata, 'data', 800, 5)
  setNeedsCheck(metadata)
  t.match(await run('thin_check', metadata), { status: 1, stderr: /counts differ for block 400/ })
  const before = readFileSync(metadata)
  await refused(t, 1, /it has leaks, --repair-leaks/, 'check', pool, '--clear-needs-check')
  t.equal(readFileSync(metadata).equals(before), true)
  const said = await done(t, 'check', pool, '--repair-leaks')
  t.match(said, /^20 data blocks and 12 metadata blocks given back, needs_check cleared\n/)
  t.notMatch(said, /leak\)|warning/)
  t.match(await run('thin_check', metadata), { status: 0 })
  t.match(JSON.parse(await done(t, 'status', pool, '--json')), {
    needsCheck: false,
    refusal: null,
    data: { usedBlocks: 0 },
  })
  await done(t, 'create', pool, 'more', '--size', '1G')
})

t.test('needs_check alone', async t => {
  const { pool, metadata } = await makePool(t)
  setNeedsCheck(metadata)
  const { mended } = JSON.parse(await done(t, 'check', pool, '--clear-needs-check', '--json'))
  t.same(mended, { dataLeaks: 0, metadataLeaks: 0, needsCheck: true })
  t.equal(readFileSync(metadata).readUInt32LE(4), 0)
  t.match(await run('thin_check', metadata), { status: 0 })
})

t.test('nothing is mended where more is wrong', async t => {
  const { pool, metadata } = await makePool(t)
  leak(metadata, 'metadata', 400, 1)
  // A block in use that the map calls free.
  change(metadata, bitmapOf(metadata, 'metadata'), SALT.bitmap, block => {
    block[16] = 0
  })
  const before = readFileSync(metadata)
  for (const option of ['--repair-leaks', '--clear-needs-check']) {
    const { status, stderr } = await thinfs('check', pool, option)
    t.equal(status, 1)
    t.match(stderr, /count 0, wanted 1: nothing is mended .*\(METADATA_CORRUPT\)/)
  }
  t.equal(readFileSync(metadata).equals(before), true)
})
