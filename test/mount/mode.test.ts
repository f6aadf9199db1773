// Goal: a pool that comes up in another mode than the one asked for says so, and what to do; doing
// that mends it. Method: damage that thin_check finds and thin_repair mends.
import { readFileSync, writeFileSync } from 'node:fs'
import t from 'tap'
import { checksum } from '../../src/metadata/blocks/checksum.js'
import { attempt, attemptThinfs, MountedPool, needs, thinfs } from '../support/mounted-pool.js'

/** As the kernel's dm-thin-metadata.c has it. */
const SUPERBLOCK_SALT = 160774
const AT = { flags: 4, dataCountsRoot: 64 + 24 }

/** Sets needs_check, and spoils the node with the large reference counts of data blocks. */
function damage(metadata: string): void {
  const image = readFileSync(metadata)
  image.writeUInt32LE(1, AT.flags)
  image.writeUInt32LE(checksum(image.subarray(0, 4096), SUPERBLOCK_SALT), 0)
  const at = Number(image.readBigUInt64LE(AT.dataCountsRoot)) * 4096 + 100
  image.writeUInt8(image.readUInt8(at) ^ 1, at)
  writeFileSync(metadata, image)
}

t.test('a pool that cannot be written to', needs('/dev/fuse'), async t => {
  const pool = await MountedPool.make(t, 'data: { size: 64M }\nvolumes: { web: { size: 16M } }')
  await pool.sh('echo precious > web')
  await pool.umount()
  damage(pool.metadata)
  t.not((await attempt('thin_check', pool.metadata)).status, 0)

  const { status, stdout, stderr } = await attemptThinfs('mount', pool.folder, pool.path)
  t.same({ status, stdout }, { status: 0, stdout: '' })
  t.match(stderr, /^thinfs: mounted, but in mode read_only: needs_check is set: [^\n]+\n$/)
  const repair = 'thinfs repair POOL, which keeps the damaged metadata'
  t.match(stderr, repair)
  const text = await thinfs('status', pool.folder)
  t.match(text, /^needs check +yes$/m)
  t.match(text, new RegExp(`^to do +thinfs umount ${pool.path}; thinfs check .*${repair}`, 'm'))
  t.equal(await pool.sh('head -c 8 web'), 'precious')
  await thinfs('umount', pool.folder)

  const again = await attemptThinfs('mount', pool.folder, pool.path, '-o', 'ro')
  t.match(again, { status: 0, stderr: '' }, 'that is the mode asked for')
  await thinfs('umount', pool.folder)

  // What was advised.
  t.match(await attemptThinfs('check', pool.folder), { status: 1 })
  t.match(await thinfs('repair', pool.folder), /the damaged metadata is /)
  const mended = await attemptThinfs('mount', pool.folder, pool.path)
  t.match(mended, { status: 0, stderr: '' })
  t.equal((await pool.status()).mode, 'write')
  t.equal(await pool.sh('head -c 8 web'), 'precious')
  await pool.close(t)
})
