// Goal: whoever has a pool with damaged metadata reads all that it still leads to, gets an error
// for the rest, never anything else, and nothing of the pool changes. Method: a leaf, then the
// superblock too, is overwritten; files are read block by block, and the kernel's sums of LVM's
// volumes are compared.
import { randomBytes } from 'node:crypto'
import {
  closeSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { KIB, MIB } from '../../src/base/index.js'
import { expectedOfLvm, lvmImage } from '../support/foreign-pools.js'
import { attemptThinfs, MountedPool, needs, run, thinfs } from '../support/mounted-pool.js'

const BLOCK = 64 * KIB

/** Overwrites 4 KiB of a file. */
function damage(path: string, at: number): void {
  const fd = openSync(path, 'r+')
  writeSync(fd, Buffer.alloc(4096, 0xaa), 0, 4096, at)
  closeSync(fd)
}

/** The metadata blocks of the leaves of a device: docs/FORMAT.md. */
function leavesOf(image: Buffer, devId: number): number[] {
  const at = (block: number, offset: number) => Number(image.readBigUInt64LE(block * 4096 + offset))
  const entries = (block: number): [number, number][] =>
    Array.from({ length: image.readUInt32LE(block * 4096 + 16) }, (_, i) => [
      at(block, 32 + 8 * i),
      at(block, 2048 + 8 * i),
    ])
  const root = new Map(entries(at(0, 320))).get(devId)!
  return entries(root).map(([, child]) => child)
}

/** Which blocks of a file are as wanted, fail, or are otherwise. */
function blocksOf(path: string, wanted: Buffer): string {
  const fd = openSync(path, 'r')
  const block = Buffer.alloc(BLOCK)
  let found = ''
  for (let at = 0; at < wanted.length; at += BLOCK) {
    try {
      readSync(fd, block, 0, BLOCK, at)
      found += block.equals(wanted.subarray(at, at + BLOCK)) ? '=' : '!'
    } catch (err) {
      found += (err as NodeJS.ErrnoException).code === 'EIO' ? 'x' : '?'
    }
  }
  closeSync(fd)
  return found.replace(/(.)\1*/g, run => `${run[0]}${run.length} `).trim()
}

t.test('a pool', needs('/dev/fuse'), async t => {
  const yaml = 'data: { size: 256M }\nvolumes: { web: { size: 64M }, db: { size: 64M } }'
  const pool = await MountedPool.make(t, yaml)
  const web = randomBytes(40 * MIB)
  const db = randomBytes(MIB)
  const put = (name: string, content: Buffer): void => {
    const fd = openSync(join(pool.path, name), 'r+')
    writeSync(fd, content)
    closeSync(fd)
  }
  put('web', web)
  put('db', db)
  // A pool's folder has what its owner puts there, whatever the name.
  writeFileSync(join(pool.folder, 'rescued'), 'notes')
  await pool.umount()
  const leaves = leavesOf(readFileSync(pool.metadata), 0)
  t.ok(leaves.length >= 3)
  damage(pool.metadata, leaves[1]! * 4096)

  for (const what of ['a leaf', 'a leaf and the superblock']) {
    if (what !== 'a leaf') damage(pool.metadata, 0)
    const before = [readFileSync(pool.metadata), readdirSync(pool.folder)]
    const said = await thinfs('rescue', pool.folder, pool.path)
    const lost = /^lost: web: mappings of blocks (\d+) to (\d+): metadata block \d+: .*checksum/m
    const [, begin, end] = lost.exec(said)!.map(Number) as [number, number, number]
    t.equal(said.match(/^lost:/gm)!.length, 1, what)
    const rest = 640 - (end + 1)
    t.equal(
      blocksOf(join(pool.path, 'web'), web),
      `=${begin} x${end + 1 - begin} =${rest}`,
      'what is lost fails, and nothing else',
    )
    t.equal(blocksOf(join(pool.path, 'db'), db), '=16')
    t.match(await pool.failure('echo x > db'), /Read-only file system/)
    const [, source] = /^(.*\/thinfs-rescue-\w+)\/pool\.yaml/m.exec(
      await run('findmnt', '-n', '-o', 'SOURCE', pool.path),
    )!
    await thinfs('umount', pool.path)
    t.throws(() => readdirSync(source!), { code: 'ENOENT' }, 'its folder goes with it')
    t.same([readFileSync(pool.metadata), readdirSync(pool.folder)], before, 'nothing has changed')
  }
  damage(pool.metadata, leaves[0]! * 4096)
  await thinfs('repair', pool.folder)
  const report = JSON.parse(await thinfs('check', pool.folder, '--json').catch(() => '{}'))
  t.notMatch(JSON.stringify(report), /metadata block/, 'a repaired one is sound')
})

t.test("LVM's disk, without the superblock of its pool", needs('/dev/fuse'), async t => {
  const pool = await MountedPool.prepare(t, '', async () => {})
  const image = join(pool.base, 'disk.img')
  lvmImage(image)
  // Where pvdisplay has the metadata.
  damage(image, 321_536 * 512)
  t.match(await attemptThinfs('adopt', image, join(pool.base, 'found')), {
    status: 1,
    stderr: /METADATA_CORRUPT/,
  })
  t.match(await thinfs('rescue', image, pool.path), /^the trees were found by a search/m)
  for (const [name, , sum] of expectedOfLvm().get('lv')!) {
    t.equal((await run('sha256sum', join(pool.path, name!))).split(' ')[0], sum, name)
  }
  await thinfs('umount', pool.path)
})

t.test('a pool whose folder has something called rescued', needs('/dev/fuse'), async t => {
  const pool = await MountedPool.make(t, 'data: { size: 16M }\nvolumes: { web: { size: 1M } }')
  writeFileSync(join(pool.folder, 'rescued'), 'by hand')
  const before = readdirSync(pool.folder)
  for (const name of ['rescued', 'pool.yaml', 'metadata', 'volumes.json', 'thinfs.log']) {
    t.ok(before.includes(name), name)
  }
  await pool.umount()
  const gone = before.filter(name => !readdirSync(pool.folder).includes(name))
  t.strictSame(
    gone.sort(),
    ['control.sock', 'daemon.json', 'journal'].filter(n => gone.includes(n)),
  )
  t.equal(readFileSync(join(pool.folder, 'rescued'), 'utf8'), 'by hand')
  await pool.close(t)
})
