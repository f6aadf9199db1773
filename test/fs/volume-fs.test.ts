// What file operations do to volumes: each call is the one that the kernel's FUSE client makes, and
// each errno the one that ext4 gives (ENOTDIR, EPERM and EOPNOTSUPP where it has more than we do).
import { spawnSync } from 'node:child_process'
import t, { type Test } from 'tap'
import { MIB } from '../../src/base/index.js'
import type { PoolConfig } from '../../src/config/index.js'
import { VolumeFs } from '../../src/fs/index.js'
import { openPool, type Volumes } from '../../src/volumes/index.js'
import { errnoFrom as errno } from '../support/errno.js'
import { filesLeft, makePool } from '../support/pool-files.js'
import { thinCheck, thinDump } from '../support/thin-tools.js'

const ROOT = 1
const BLOCK = 64 * 1024
const CALLER = { uid: 1000, gid: 1000, pid: 1 }
const KEEP_SIZE = 1
const PUNCH_HOLE = 2
const COLLAPSE_RANGE = 8
const ZERO_RANGE = 16
const SEEK_DATA = 3
const SEEK_HOLE = 4
const O_TRUNC = 0o1000
const NOREPLACE = 1
const EXCHANGE = 2

interface Opened {
  fs: VolumeFs
  volumes: Volumes
  config: PoolConfig
  close(): Promise<void>
}

async function open(config: PoolConfig, options: object = {}): Promise<Opened> {
  const { volumes, close } = await openPool(config, options)
  const fs = new VolumeFs(volumes, { uid: 0, gid: 0 }, 1000)
  return { fs, volumes, config, close }
}

const made = async (t: Test, options: Partial<PoolConfig> = {}): Promise<Opened> =>
  open(await makePool(t.testdir(), options))

const create = async (fs: VolumeFs, name: string): Promise<number> =>
  (await fs.create(ROOT, name, 0o644, CALLER)).ino

async function put(fs: VolumeFs, ino: number, offset: number, size: number, value: number) {
  const piece = Buffer.alloc(Math.min(size, MIB), value)
  for (let done = 0; done < size; done += MIB) {
    await fs.write(ino, offset + done, Math.min(MIB, size - done), piece, 0)
  }
}

function get(fs: VolumeFs, ino: number, offset: number, size: number): Buffer {
  const found = Buffer.alloc(size, 0xff)
  return found.subarray(0, fs.read(ino, offset, size, found, 0))
}

t.test('errors are those of a Linux filesystem', async t => {
  const { fs, volumes, close } = await made(t)
  const ino = await create(fs, 'a')
  await put(fs, ino, 0, 1000, 1)
  const data = Buffer.alloc(512)
  const cases: [string, string | null, () => unknown][] = [
    ['lookup, missing', 'ENOENT', () => fs.lookup(ROOT, 'nobody')],
    ['lookup, too long', 'ENAMETOOLONG', () => fs.lookup(ROOT, 'x'.repeat(256))],
    ['lookup in a file', 'ENOTDIR', () => fs.lookup(ino, 'b')],
    ['getattr, stale', 'ESTALE', () => fs.getattr(ino + 100)],
    ['open, stale', 'ESTALE', () => fs.open(ino + 100, 0, 1)],
    ['read of the root', 'EISDIR', () => fs.read(ROOT, 0, 512, data, 0)],
    ['readdir of a file', 'ENOTDIR', () => fs.readdir(ino)],
    ['create, there', 'EEXIST', () => fs.create(ROOT, 'a', 0o600, CALLER)],
    ['create, reserved', 'EINVAL', () => fs.create(ROOT, 'thin-5', 0o600, CALLER)],
    ['unlink, missing', 'ENOENT', () => fs.unlink(ROOT, 'nobody')],
    ['rename, missing', 'ENOENT', () => fs.rename(ROOT, 'nobody', ROOT, 'b', 0, 2)],
    ['rename, no replace', 'EEXIST', () => fs.rename(ROOT, 'a', ROOT, 'a', NOREPLACE, 2)],
    ['rename, exchange', 'ENOENT', () => fs.rename(ROOT, 'a', ROOT, 'nobody', EXCHANGE, 2)],
    ['rename, whiteout', 'EINVAL', () => fs.rename(ROOT, 'a', ROOT, 'b', 4, 2)],
    ['setattr of the root', 'EPERM', () => fs.setattr(ROOT, { mode: 0o777 })],
    ['truncate, too large', 'EFBIG', () => fs.setattr(ino, { size: 2 ** 53 })],
    ['truncate, odd', null, () => fs.setattr(ino, { size: 999 })],
    ['write, too far', 'EFBIG', () => fs.write(ino, 2 ** 53 - 512, 512, data, 0)],
    ['write of nothing', null, () => fs.write(ino, 2 ** 52, 0, data, 0)],
    ['fallocate, nothing', 'EINVAL', () => fs.fallocate(ino, 0, 0, 0)],
    ['fallocate, too far', 'EFBIG', () => fs.fallocate(ino, 0, 2 ** 53 - 512, 512)],
    ['fallocate, too much', 'ENOSPC', () => fs.fallocate(ino, 0, 0, 100 * MIB)],
    ['collapse', 'EOPNOTSUPP', () => fs.fallocate(ino, COLLAPSE_RANGE, 0, BLOCK)],
    ['punch past the end', null, () => fs.fallocate(ino, PUNCH_HOLE | KEEP_SIZE, MIB, BLOCK)],
    ['seek data past the end', 'ENXIO', () => fs.lseek(ino, 999, SEEK_DATA)],
    ['seek hole past the end', 'ENXIO', () => fs.lseek(ino, 999, SEEK_HOLE)],
    ['seek, unknown', 'EINVAL', () => fs.lseek(ino, 0, 9)],
    ['copy over itself', 'EINVAL', () => fs.copyFileRange(ino, 0, ino, 100, 200)],
    ['copy from past the end', null, () => fs.copyFileRange(ino, 5000, ino, 0, 200)],
    ['copy too far', 'EFBIG', () => fs.copyFileRange(ino, 0, ino, 2 ** 53 - 512, 512)],
    ['getxattr, unknown', 'ENODATA', () => fs.getxattr(ino, 'user.other')],
    ['getxattr, of every object', 'ENODATA', () => fs.getxattr(ino, 'constructor')],
    ['getxattr, of no name', 'ENODATA', () => fs.getxattr(ino, '__proto__')],
    ['getxattr of the root', 'ENODATA', () => fs.getxattr(ROOT, 'user.thinfs.dev_id')],
  ]
  for (const [what, wanted, act] of cases) t.equal(await errno(act), wanted, what)
  t.equal(fs.getattr(ino).size, 999, 'what failed changed no size')
  t.equal(volumes.count, 1)
  await close()
})

t.test('a read-only pool changes nothing, not even a size', async t => {
  const first = await made(t)
  const ino = await create(first.fs, 'a')
  await put(first.fs, ino, 0, 1000, 1)
  await first.close()
  const { fs, close } = await open(first.config, { readOnly: true })
  const cases: [string, () => unknown][] = [
    ['write past the end', () => fs.write(ino, 1000, 512, Buffer.alloc(512), 0)],
    ['truncate', () => fs.setattr(ino, { size: 10 })],
    ['chmod', () => fs.setattr(ino, { mode: 0o600 })],
    ['fallocate', () => fs.fallocate(ino, 0, 0, BLOCK)],
    ['punch', () => fs.fallocate(ino, PUNCH_HOLE | KEEP_SIZE, 0, BLOCK)],
    ['copy', () => fs.copyFileRange(ino, 0, ino, 5000, 100)],
    ['create', () => fs.create(ROOT, 'b', 0o600, CALLER)],
    ['unlink', () => fs.unlink(ROOT, 'a')],
    ['rename', () => fs.rename(ROOT, 'a', ROOT, 'b', 0, 2)],
  ]
  for (const [what, act] of cases) t.equal(await errno(act), 'EROFS', what)
  t.equal(fs.getattr(ino).size, 1000)
  t.equal(await errno(() => fs.syncfs()), null)
  t.ok(get(fs, ino, 0, 1000).every(byte => byte === 1))
  await close()
})

t.test('what does not fit leaves the file as long as it was', async t => {
  const { fs, volumes, close } = await made(t, { data: { path: '', size: 4 * BLOCK } })
  const ino = await create(fs, 'a')
  await put(fs, ino, 0, 3 * BLOCK, 1)
  t.equal(await errno(() => put(fs, ino, 8 * BLOCK, 2 * BLOCK, 2)), 'ENOSPC')
  t.equal(await errno(() => fs.fallocate(ino, 0, 0, 9 * BLOCK)), 'ENOSPC')
  t.equal(fs.getattr(ino).size, 3 * BLOCK)
  t.equal(volumes.pool.devices.unsavedSizes.get(0 as never), 3 * BLOCK)
  await close()
})

t.test('opens are counted', async t => {
  const { fs, volumes, close } = await made(t)
  const ino = await create(fs, 'a')
  await put(fs, ino, 0, BLOCK, 1)
  await fs.open(ino, 0, 1)
  await fs.open(ino, O_TRUNC, 2)
  t.equal(fs.getattr(ino).size, 0)
  fs.release(ino, 2)
  fs.release(ino, 1)
  t.equal(volumes.find('a')!.opens, 0)
  const { sizes } = volumes
  const { set } = sizes
  sizes.set = () => Promise.reject(Object.assign(new Error('full'), { code: 'ENOSPC' }))
  t.equal(await errno(() => fs.open(ino, O_TRUNC, 3)), 'ENOSPC')
  sizes.set = set
  t.equal(volumes.find('a')!.opens, 0, 'no release follows an open that failed')
  await close()
})

t.test('an unlinked file lives until it is closed', async t => {
  const { fs, volumes, config, close } = await made(t)
  const ino = await create(fs, 'a')
  await fs.open(ino, 0, 1)
  await put(fs, ino, 0, 2 * BLOCK, 1)
  await fs.unlink(ROOT, 'a')
  t.equal(await errno(() => fs.lookup(ROOT, 'a')), 'ENOENT')
  t.same(fs.readdir(ROOT), [])
  t.equal(fs.getattr(ino).nlink, 0)
  await fs.open(ino, 0, 2) // by way of /proc/self/fd
  await put(fs, ino, BLOCK, BLOCK, 2)
  await fs.setattr(ino, { size: BLOCK + 10 })
  await fs.syncfs()
  const again = await create(fs, 'a')
  t.not(again, ino)
  t.equal(get(fs, ino, BLOCK, 100).length, 10)
  fs.release(ino, 1)
  t.equal(get(fs, ino, 0, 1)[0], 1)
  fs.release(ino, 2)
  t.equal(await errno(() => fs.open(ino, 0, 3)), 'ESTALE', 'the kernel may still know the name')
  while (volumes.byDevId(0)) await new Promise(resolve => setImmediate(resolve))
  t.equal(await errno(() => fs.getattr(ino)), 'ESTALE')
  await fs.syncfs()
  t.same([...thinDump(config.metadata.path).devices.keys()], [again - 2])
  await close()
})

t.test('rename', async t => {
  const { fs, volumes, close } = await made(t)
  const a = await create(fs, 'a')
  const b = await create(fs, 'b')
  await fs.rename(ROOT, 'a', ROOT, 'b', EXCHANGE, 2)
  t.same([fs.lookup(ROOT, 'a').ino, fs.lookup(ROOT, 'b').ino], [b, a])
  await fs.open(b, 0, 1)
  await fs.rename(ROOT, 'b', ROOT, 'a', 0, 2)
  t.equal(fs.lookup(ROOT, 'a').ino, a)
  t.equal(fs.getattr(b).nlink, 0, 'what had the name is unlinked, and open still')
  fs.release(b, 1)
  // The name is taken while the rename waits for its turn.
  const creating = volumes.create({ name: 'c', size: 0 })
  t.equal(await errno(() => fs.rename(ROOT, 'a', ROOT, 'c', NOREPLACE, 2)), 'EEXIST')
  await creating
  t.equal(volumes.count, 2)
  await close()
})

t.test('holes are found as the mapping has them', async t => {
  const { fs, close } = await made(t)
  const ino = await create(fs, 'a')
  await fs.setattr(ino, { size: 20 * BLOCK + 100 })
  t.equal(await errno(() => fs.lseek(ino, 0, SEEK_DATA)), 'ENXIO', 'no data at all')
  await put(fs, ino, 3 * BLOCK + 5, 1, 1)
  await put(fs, ino, 4 * BLOCK, BLOCK, 1)
  await put(fs, ino, 20 * BLOCK, 100, 1)
  const cases: [number, number, number][] = [
    [0, SEEK_DATA, 3 * BLOCK],
    [0, SEEK_HOLE, 0],
    [3 * BLOCK + 700, SEEK_DATA, 3 * BLOCK + 700],
    [3 * BLOCK + 700, SEEK_HOLE, 5 * BLOCK],
    [5 * BLOCK, SEEK_DATA, 20 * BLOCK],
    [5 * BLOCK + 1, SEEK_HOLE, 5 * BLOCK + 1],
    [20 * BLOCK + 99, SEEK_HOLE, 20 * BLOCK + 100],
  ]
  for (const [offset, whence, found] of cases) {
    t.equal(await fs.lseek(ino, offset, whence), found)
  }
  t.equal(fs.getattr(ino).blocks, (3 * BLOCK) / 512)
  t.ok(get(fs, ino, 5 * BLOCK, 15 * BLOCK).every(byte => byte === 0))
  await close()
})

t.test('fallocate', async t => {
  const { fs, close } = await made(t)
  const ino = await create(fs, 'a')
  await fs.fallocate(ino, 0, 0, 4 * BLOCK + 1)
  t.equal(fs.getattr(ino).size, 4 * BLOCK + 1)
  t.equal(fs.getattr(ino).blocks, (5 * BLOCK) / 512)
  t.ok(get(fs, ino, 0, 4 * BLOCK + 1).every(byte => byte === 0))
  await fs.fallocate(ino, KEEP_SIZE, 0, 10 * BLOCK)
  t.equal(fs.getattr(ino).size, 4 * BLOCK + 1)
  await put(fs, ino, 0, 4 * BLOCK + 1, 7)
  await fs.fallocate(ino, PUNCH_HOLE | KEEP_SIZE, BLOCK - 10, BLOCK + 20)
  await fs.fallocate(ino, ZERO_RANGE, 4 * BLOCK, 2 * BLOCK)
  t.equal(fs.getattr(ino).size, 6 * BLOCK)
  const model = Buffer.alloc(6 * BLOCK)
  model.fill(7, 0, 4 * BLOCK)
  model.fill(0, BLOCK - 10, 2 * BLOCK + 10)
  t.ok(get(fs, ino, 0, 6 * BLOCK).equals(model))
  t.equal(fs.getattr(ino).blocks, (3 * BLOCK) / 512)
  await close()

  const ignoring = await made(t, { discards: 'ignore' })
  const file = await create(ignoring.fs, 'a')
  await put(ignoring.fs, file, 0, BLOCK, 7)
  const punch = () => ignoring.fs.fallocate(file, PUNCH_HOLE | KEEP_SIZE, 0, BLOCK)
  t.equal(await errno(punch), 'EOPNOTSUPP')
  await ignoring.close()
})

t.test('a copy shares whole blocks, whatever the range, and is a copy', async t => {
  const { fs, volumes, config, close } = await made(t)
  const source = await create(fs, 'source')
  const SIZE = 12 * BLOCK + 700
  const model = Buffer.alloc(SIZE)
  for (let i = 0; i < SIZE; i += 4) model.writeUInt32LE((i * 2654435761) % 2 ** 32, i)
  model.fill(0, 5 * BLOCK, 7 * BLOCK)
  await fs.write(source, 0, 5 * BLOCK, model, 0)
  await fs.write(source, 7 * BLOCK, SIZE - 7 * BLOCK, model, 7 * BLOCK)
  const ranges: [from: number, to: number, length: number, shared: number][] = [
    [0, 0, SIZE, 10], // all of it: the tail is part of a block and is copied
    [BLOCK, 3 * BLOCK, 2 * BLOCK, 2],
    [100, BLOCK + 100, 3 * BLOCK, 2],
    [100, 200, 3 * BLOCK, 0],
    [5 * BLOCK, 0, 2 * BLOCK, 0],
    [0, 40 * BLOCK, 1, 0],
    [11 * BLOCK, 2 * BLOCK, 100 * BLOCK, 1], // to the end
  ]
  for (const [i, [from, to, length, shared]] of ranges.entries()) {
    const target = await create(fs, `target${i}`)
    const wanted = Buffer.alloc(50 * BLOCK, 0)
    await put(fs, target, 0, 2 * BLOCK, 9)
    wanted.fill(9, 0, 2 * BLOCK)
    const done = await fs.copyFileRange(source, from, target, to, length)
    t.equal(done, Math.min(length, SIZE - from))
    model.copy(wanted, to, from, from + done)
    const { size } = fs.getattr(target)
    t.equal(size, Math.max(2 * BLOCK, to + done))
    t.ok(get(fs, target, 0, size).equals(wanted.subarray(0, size)), `range ${i}`)
    const { mapped, exclusive } = (await volumes.list({ exclusive: true })).find(
      v => v.name === `target${i}`,
    )!
    t.equal((mapped - exclusive!) / BLOCK, shared, `range ${i}: blocks shared`)
    // A write to either side leaves the other.
    await put(fs, target, 0, size, 8)
    t.ok(get(fs, source, 0, SIZE).equals(model), `range ${i}: the source`)
  }
  await fs.copyFileRange(source, 0, source, 20 * BLOCK, 4 * BLOCK)
  await put(fs, source, 0, 4 * BLOCK, 6)
  t.ok(get(fs, source, 20 * BLOCK, 4 * BLOCK).equals(model.subarray(0, 4 * BLOCK)))
  await fs.syncfs()
  t.equal(thinCheck(config.metadata.path).status, 0)

  // thin_ls takes what has one owner for exclusive: it agrees.
  const columns = ['-o', 'DEV,MAPPED_BYTES,EXCLUSIVE_BYTES', '--no-headers']
  const listed = spawnSync('thin_ls', [...columns, config.metadata.path], { encoding: 'utf8' })
  t.equal(listed.status, 0, listed.stderr)
  const found = (await volumes.list({ exclusive: true })).map(v => [v.devId, v.mapped, v.exclusive])
  t.same(
    listed.stdout
      .trim()
      .split('\n')
      .map(line => line.trim().split(/\s+/).map(bytesOf)),
    found.sort(([a], [b]) => a! - b!),
  )
  for (const [devId, mapped, exclusive] of found) {
    const ino = devId! + 2
    t.equal(String(fs.getxattr(ino, 'user.thinfs.mapped_bytes')), String(mapped))
    t.equal(String(await fs.getxattr(ino, 'user.thinfs.exclusive_bytes')), String(exclusive))
  }
  await close()
})

/** A number of bytes as thin_ls prints it. */
function bytesOf(text: string): number {
  const [, number, unit] = /^([0-9.]+)(\w*)$/.exec(text)!
  return Number(number) * ({ KiB: 1024, MiB: MIB }[unit!] ?? 1)
}

t.test('snapshots share what they have, as thin_ls counts it', async t => {
  const { fs, volumes, config, close } = await made(t)
  const origin = await create(fs, 'origin')
  await put(fs, origin, 0, 8 * BLOCK, 1)
  await volumes.snapshot({ origin: 'origin', name: 'one' })
  await volumes.snapshot({ origin: 'one', name: 'two' })
  await put(fs, fs.lookup(ROOT, 'one').ino, 0, 3 * BLOCK, 2)
  await put(fs, origin, BLOCK, 4 * BLOCK, 3)
  await fs.fallocate(fs.lookup(ROOT, 'two').ino, PUNCH_HOLE | KEEP_SIZE, 0, BLOCK)
  await fs.syncfs()
  const columns = ['-o', 'DEV,MAPPED_BLOCKS,EXCLUSIVE_BLOCKS', '--no-headers']
  const listed = spawnSync('thin_ls', [...columns, config.metadata.path], { encoding: 'utf8' })
  t.equal(listed.status, 0, listed.stderr)
  t.same(
    listed.stdout
      .trim()
      .split('\n')
      .map(line => line.trim().split(/\s+/).map(Number)),
    (await volumes.list({ exclusive: true }))
      .map(({ devId, mapped, exclusive }) => [devId, mapped / BLOCK, exclusive! / BLOCK])
      .sort(([a], [b]) => a! - b!),
  )
  t.equal(String(fs.getxattr(fs.lookup(ROOT, 'two').ino, 'user.thinfs.origin')), 'one')
  t.notOk(fs.listxattr(origin).includes('user.thinfs.origin'))
  await close()
})

t.test('names that were exchanged are not exchanged back for the next engine', async t => {
  const { fs, config, close } = await made(t)
  const a = await create(fs, 'a')
  const b = await create(fs, 'b')
  const owners = (of: VolumeFs) => ['a', 'b'].map(name => of.lookup(ROOT, name).ino)
  await fs.rename(ROOT, 'a', ROOT, 'b', EXCHANGE, 8)
  const next = await open(filesLeft(config), { takesOver: true })
  await next.fs.rename(ROOT, 'a', ROOT, 'b', EXCHANGE, 8)
  t.same(owners(next.fs), [b, a], 'the same request')
  await next.fs.rename(ROOT, 'a', ROOT, 'b', EXCHANGE, 10)
  t.same(owners(next.fs), [a, b], 'another')
  await next.close()
  await close()
})

t.test('what was acknowledged is there for the next engine', async t => {
  const { fs, config, close } = await made(t)
  const ino = await create(fs, 'a')
  await fs.open(ino, 0, 1)
  await put(fs, ino, 0, 3 * BLOCK + 5, 1)
  await fs.copyFileRange(ino, 0, ino, 10 * BLOCK, 2 * BLOCK)
  await fs.fallocate(ino, PUNCH_HOLE | KEEP_SIZE, BLOCK, BLOCK)
  await fs.settle()
  t.equal(fs.unsettled, false)
  const left = filesLeft(config)
  const next = await open(left, { takesOver: true })
  const wanted = Buffer.alloc(12 * BLOCK)
  wanted.fill(1, 0, 3 * BLOCK + 5)
  wanted.fill(0, BLOCK, 2 * BLOCK)
  wanted.fill(1, 10 * BLOCK, 12 * BLOCK)
  t.equal(next.fs.getattr(ino).size, wanted.length)
  t.ok(get(next.fs, ino, 0, wanted.length).equals(wanted))
  next.fs.release(ino, 1)
  await next.close()
  t.equal(thinCheck(left.metadata.path).status, 0)
  await close()
})

t.test('attributes', async t => {
  const { fs, config, close } = await made(t)
  const a = await fs.create(ROOT, 'a', 0o666, CALLER)
  t.match(a, { mode: 0o100600, uid: 1000, gid: 1000, nlink: 1, size: 0, blockSize: BLOCK })
  await fs.setattr(a.ino, { mode: 0o104751, uid: 5, gid: 6, mtime: 77.5 })
  const wanted = { mode: 0o100751, uid: 5, gid: 6 }
  t.match(fs.getattr(a.ino), { ...wanted, mtime: 77.5 })
  t.match(fs.getattr(ROOT), { mode: 0o040755, nlink: 2, uid: 0 })
  t.match(fs.statfs(), { blockSize: BLOCK, blocks: 1024, blocksFree: 1024, nameMax: 255 })
  t.equal(String(fs.getxattr(a.ino, 'user.thinfs.dev_id')), '0')
  await fs.unlink(ROOT, 'a')
  const b = await fs.create(ROOT, 'b', 0o600, CALLER)
  t.ok(b.ino !== a.ino || b.generation !== a.generation, 'tell one file from the next')
  await fs.setattr(b.ino, { mode: 0o751, uid: 5, gid: 6 })
  await close()
  const again = await open(config)
  t.match(again.fs.lookup(ROOT, 'b'), { ...wanted, ino: b.ino, generation: b.generation })
  await again.close()
})
