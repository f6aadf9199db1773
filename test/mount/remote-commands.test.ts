// Goal: an operator's commands do on disks of other machines what they do on files, or say in one
// line that they do not: what damaged metadata still has is saved, older copies are refused, and
// metadata is checked as a whole where nothing says that the pool was closed in order. Method: a
// pool over nbdkit with images, which are damaged and put back; thin_check and thin_dump judge.
import { spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { copyFileSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { MIB } from '../../src/base/index.js'
import { connectDaemon } from '../../src/control/index.js'
import {
  attempt,
  attemptThinfs,
  MountedPool,
  needs,
  run,
  thinfs,
  until,
} from '../support/mounted-pool.js'
import {
  type Exports,
  exportLines,
  imageOf,
  ServerProcess,
  serveImage,
  serveImages,
  shortFolder,
} from '../support/nbd-servers.js'
import { thinCheck } from '../support/thin-tools.js'

const SIZES = { data: 32 * MIB, metadata: 2 * MIB, state: 16 * MIB }

async function farPool(
  t: Test,
  args: string[],
): Promise<{ pool: MountedPool; exports: Exports; folder: string }> {
  const folder = shortFolder(t)
  const exports = await serveImages(t, folder, SIZES, args)
  const more = 'cache: { size: 4M }\nvolumes: { web: { size: 16M } }'
  return { pool: await MountedPool.make(t, `${exportLines(exports)}${more}`), exports, folder }
}

t.test('commands of an operator', needs('/dev/fuse'), async t => {
  const limit = ['--filter=limit']
  const { pool, exports, folder } = await farPool(t, limit)
  const metadata = imageOf(folder, 'metadata')
  const copy = (name: string): string => join(pool.base, name)
  const refused = async (why: RegExp, ...args: string[]): Promise<void> => {
    const { status, stderr } = await attemptThinfs(...args)
    t.not(status, 0)
    t.match(stderr, why, args[0]!)
    t.equal(stderr.trimEnd().split('\n').length, 1, stderr)
  }
  /** Ends the server of the metadata, changes the image, and serves that. */
  const changed = async (change: () => void): Promise<void> => {
    await exports.metadata.kill()
    change()
    exports.metadata = await serveImage(t, metadata, SIZES.metadata, limit)
  }

  t.match((await pool.status()).tenancy, { strength: 'connection' })
  writeFileSync(copy('random'), randomBytes(4 * MIB))
  await pool.sh(`dd if=${copy('random')} of=web bs=1M conv=notrunc,fsync status=none`)
  await thinfs('snapshot', pool.folder, 'web', 'before')
  await thinfs('export', pool.folder, 'before', copy('exported.raw'))
  t.equal((await attempt('cmp', copy('exported.raw'), join(pool.path, 'before'))).status, 0)
  await thinfs('trim', pool.folder)
  await refused(
    /thinfs send and receive bring its volumes .*NOT_SUPPORTED/,
    'shrink',
    pool.folder,
    '--data',
    '16M',
  )
  await refused(/umount comes first .*POOL_IN_USE/, 'repair', pool.folder)
  await pool.umount()
  copyFileSync(metadata, copy('older'))

  // What was closed in order is known: all of it, and where it is free.
  t.match(await thinfs('check', pool.folder, '--deep'), / 0 free ones hold data$/m)
  await refused(/it is not empty.*--force overwrites/, 'init', pool.folder)
  await refused(/the kernel wants a disk/, 'table', pool.folder)
  const address = exports.metadata.address.text
  await refused(/a pool.yaml with their addresses.*NOT_SUPPORTED/, 'adopt', address, pool.base)

  await pool.mount()
  await pool.sh('dd if=/dev/urandom of=web bs=1M count=1 conv=notrunc,fsync status=none')
  copyFileSync(join(pool.path, 'web'), copy('web'))
  await thinfs('create', pool.folder, 'more', '--size', '1M')
  await pool.umount()
  copyFileSync(metadata, copy('newest'))

  await changed(() => copyFileSync(copy('older'), metadata))
  await refused(/an older copy.*POOL_MISMATCH/, 'mount', pool.folder, pool.path)
  await changed(() => copyFileSync(copy('newest'), metadata))

  const { stdout } = await attempt('thin_dump', metadata)
  const dump = await thinfs('dump', pool.folder)
  t.equal(dump, stdout.trimEnd(), 'as thin_dump')
  writeFileSync(copy('dump.xml'), `${dump}\n`)
  await refused(/it has 3 devices; --force/, 'restore', pool.folder, '-i', copy('dump.xml'))
  await thinfs('restore', pool.folder, '-i', copy('dump.xml'), '--force')
  t.match(thinCheck(metadata), { status: 0 })
  t.equal(await thinfs('dump', pool.folder), dump)
  await pool.mount()
  t.equal((await attempt('cmp', copy('web'), join(pool.path, 'web'))).status, 0, 'restored')
  await pool.umount()

  // Without its superblock.
  await changed(() => {
    const content = readFileSync(metadata)
    content.fill(0xff, 0, 4096)
    writeFileSync(metadata, content)
  })
  await refused(/no thin pool metadata.*METADATA_CORRUPT/, 'mount', pool.folder, pool.path)
  const at = copy('rescued')
  mkdirSync(at)
  t.match(await thinfs('rescue', pool.folder, at), /3 volumes at/)
  t.equal((await attempt('cmp', copy('exported.raw'), join(at, 'before'))).status, 0, 'rescued')
  await thinfs('umount', at)
  t.match(await thinfs('repair', pool.folder), /3 devices, \d+ mappings saved/)
  t.match(thinCheck(metadata), { status: 0 })
  await thinfs('mount', pool.folder, pool.path, '--accept-metadata')
  t.equal((await attempt('cmp', copy('exported.raw'), join(pool.path, 'before'))).status, 0)
  await pool.umount()
  t.match(await thinfs('check', pool.folder, '--repair-leaks'), /needs_check was not set/)

  t.match(await thinfs('init', pool.folder, '--force'), /1 volumes/)
  t.match(thinCheck(metadata), { status: 0 })
  await pool.mount()
  await run('cmp', '-n', '16777216', join(pool.path, 'web'), '/dev/zero')
  await pool.umount()
})

t.test(
  'a server that lets in others keeps nobody away, and is said to',
  needs('/dev/fuse'),
  async t => {
    const { pool } = await farPool(t, [])
    await until(async () => (await pool.status()).tenancy?.strength === 'advisory')
    await pool.umount()
  },
)

t.test(
  'what takes long to be opened tells how far it is, and ends at once',
  needs('/dev/fuse'),
  async t => {
    const { pool, exports, folder } = await farPool(t, [])
    await pool.umount()
    await exports.metadata.kill()
    // Blocks that no metadata uses are read as well: 60 requests, 16 at a time, of two seconds
    // each.
    const image = imageOf(folder, 'metadata')
    writeFileSync(image, Buffer.alloc(60 * MIB, 1), { flag: 'a' })
    exports.metadata = await ServerProcess.nbdkit(
      t,
      `${image}.d`,
      ...['--filter=delay', 'file', image, 'rdelay=2'],
    )
    const mounting = spawn(process.execPath, ['bin/thinfs.js', 'mount', pool.folder, pool.path])
    const ended = once(mounting, 'exit')
    const place = { file: join(pool.folder, 'pool.yaml'), folder: pool.folder }
    const wanted = /the pool is being mounted: reading the metadata, \d+%/
    await until(async () => {
      const daemon = await connectDaemon(place)
      const said = await daemon?.status().catch(err => err.message)
      daemon?.close()
      return wanted.test(String(said))
    })
    mounting.kill('SIGINT')
    await ended
    t.notMatch(readFileSync('/proc/self/mounts', 'utf8'), pool.path)
  },
)
