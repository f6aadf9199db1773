// Goal: thinfs serves pools that others wrote as they are, and never one that is damaged as if it
// were not. Method: images of the kernel's and of thin_restore's making, with their hashes and
// dumps, and damaged ones whose damage is known.
import { copyFileSync, readFileSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { gunzipSync } from 'node:zlib'
import t, { type Test } from 'tap'
import { attemptThinfs, MountedPool, needs, run, sh, thinfs } from '../support/mounted-pool.js'
import {
  fixture,
  fixtureFacts,
  fixtureXml,
  parseDump,
  thinCheck,
  thinDump,
  thinDumpXml,
} from '../support/thin-tools.js'

const onMount = needs('/dev/fuse')
const KERNEL_POOL = join(import.meta.dirname, '..', 'fixtures', 'kernel-pool')

interface Manifest {
  thins: { id: number; sha256: string; mapped_sectors: number }[]
}

t.test('a pool that the kernel wrote', onMount, async t => {
  const pool = await MountedPool.prepare(
    t,
    `data: { size: 64M }
volumes: { a: { id: 0, size: 64M }, b: { id: 1, size: 64M }, c: { id: 2, size: 64M } }`,
    async () => {},
  )
  writeFileSync(pool.metadata, gunzipSync(readFileSync(join(KERNEL_POOL, 'meta.img.gz'))))
  await run('zstd', '-dq', join(KERNEL_POOL, 'data.img.zst'), '-o', pool.data)
  const before = thinDump(pool.metadata)
  await pool.mount()
  const { thins }: Manifest = JSON.parse(readFileSync(join(KERNEL_POOL, 'manifest.json'), 'utf8'))
  const hold = async (): Promise<void> => {
    for (const { id, sha256, mapped_sectors } of thins) {
      const name = 'abc'[id]!
      t.equal((await pool.sh(`sha256sum < ${name}`)).split(' ')[0], sha256, `device ${id}`)
      t.equal(await pool.sh(`stat -c %b ${name}`), String(mapped_sectors))
    }
  }
  await hold()
  const mappings = (dump: typeof before) =>
    [...dump.devices].map(([id, { mappings }]) => [id, [...mappings]])
  await pool.close(t)
  t.same(mappings(thinDump(pool.metadata)), mappings(before), 'reading changes nothing')

  // A copy without the label of the data is served, like any other, and what they share comes
  // apart.
  await sh(pool.folder, 'cp --sparse=always data copy; mv copy data')
  await pool.mount()
  await pool.sh('cp b ../plain/b; dd if=/dev/urandom of=a bs=1M count=20 conv=notrunc status=none')
  await pool.sh('cmp b ../plain/b; fallocate -p -o 0 -l 64M a; rm a')
  thins.shift()
  await hold()
  await pool.sh('e2fsck -fn b > ../fsck; e2fsck -fn c > ../fsck')
  await pool.close(t)
})

/** Bytes other than zero at the beginning of some volumes. */
const READ = "ls | sed -n 1,20p | xargs -r head -qc 1M | tr -d '\\0' | wc -c"

/** A pool around an image of metadata; its data is a hole. */
async function poolOf(t: Test, image: string, nrBlocks: number, blockSize: number) {
  const size = nrBlocks * blockSize
  const yaml = `data: { size: ${size} }\ndata_block_size: ${blockSize}`
  const pool = await MountedPool.prepare(t, yaml, async () => {})
  writeFileSync(pool.metadata, fixture(image))
  writeFileSync(pool.data, '')
  truncateSync(pool.data, size)
  return pool
}

t.test('good images are shown as they are', onMount, async t => {
  const images = Object.keys(fixtureFacts()).filter(name => !name.startsWith('corrupt-'))
  for (const image of images) {
    await t.test(image, async t => {
      const { dataBlockSize, nrDataBlocks, devices } = parseDump(fixtureXml(image))
      const pool = await poolOf(t, image, Math.max(nrDataBlocks, 1), dataBlockSize * 512)
      await pool.mount()
      const shown = await pool.sh("find . -type f -printf '%f %b\\n' | sort -V")
      const wanted = [...devices].map(
        ([id, { mappedBlocks }]) => `thin-${id} ${mappedBlocks * dataBlockSize}`,
      )
      t.same(shown.split('\n').filter(Boolean), wanted)
      t.equal(await pool.sh(READ), '0')
      t.equal((await pool.status()).mode, 'write')
      await pool.umount()
      // An image without data blocks has become one with some.
      // The other has been checked, and found sound.
      const left = fixtureXml(image).replace(' flags="1"', ' flags="0"')
      if (nrDataBlocks > 0) t.equal(thinDumpXml(pool.metadata), left)
      t.equal(thinCheck(pool.metadata).status, 0)
    })
  }
})

t.test('damage is named', onMount, async t => {
  // What another program wrote is checked before it is written to. A leak is no error: nothing is
  // lost by it but space.
  for (const [name, damage, severity, mounts] of [
    ['superblock-csum', /superblock\b.*checksum/, 'error', false],
    ['node-csum', /(node|block) 10\b.*checksum/, 'error', false],
    ['unsorted-keys', /(node|block) 10\b.* key/, 'error', false],
    ['underfull-node', /device 0: mapped_blocks is 1600, wanted 1435/, 'error', false],
    ['metadata-undercount', /block 10\b/, 'error', false],
    ['data-undercount', /block 7\b/, 'error', false],
    ['metadata-leak', /block 500\b/, 'warning', true],
    ['data-leak', /block 900\b/, 'warning', true],
  ] as const) {
    await t.test(name, async t => {
      const pool = await poolOf(
        t,
        `corrupt-${name}`,
        name === 'underfull-node' ? 4096 : 1024,
        65536,
      )
      copyFileSync(pool.metadata, join(pool.plain, 'metadata'))
      const { status, stdout, stderr } = await attemptThinfs('check', pool.folder)
      t.equal(status, severity === 'error' ? 1 : 0)
      t.match(stdout + stderr, damage)
      t.equal(await run('cmp', pool.metadata, join(pool.plain, 'metadata')), '', 'left as it was')
      const mounted = await attemptThinfs('mount', pool.folder, pool.path)
      t.equal(mounted.status, mounts ? 0 : 1, mounted.stderr)
      if (!mounts) return t.match(mounted.stderr, damage)
      t.equal(await pool.sh(READ), '0')
      await thinfs('umount', pool.folder)
    })
  }
})
