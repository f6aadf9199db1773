import { execFileSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import {
  closeSync,
  mkdirSync,
  mkdtempSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { bytes, KIB, MIB } from '../../src/base/index.js'
import { native } from '../../src/native.js'
import { FileStore } from '../../src/storage/index.js'
import { storeContract } from '../contract/store.js'
import { MemoryStore } from '../support/memory-store.js'

const run = (program: string, ...args: string[]): string =>
  execFileSync(program, args, { encoding: 'utf8', timeout: 20_000 }).trim()

function folder(t: Test, parent: string): string {
  const path = mkdtempSync(join(parent, 'thinfs-store-'))
  t.teardown(() => rmSync(path, { recursive: true, force: true }))
  return path
}

/** A folder with a file system of its own. */
function mounted(t: Test, type: string, options = 'defaults'): string {
  const path = mkdtempSync(join(tmpdir(), 'thinfs-store-'))
  run('mount', '-t', type, '-o', options, 'none', path)
  t.teardown(() => {
    run('umount', path)
    rmSync(path, { recursive: true })
  })
  return path
}

/** A file system of its own in an image. */
function image(t: Test, type: string): string {
  const parent = folder(t, tmpdir())
  const file = join(parent, 'image')
  writeFileSync(file, '')
  truncateSync(file, 512 * MIB)
  run(`mkfs.${type}`, '-q', file)
  const path = join(parent, 'mount')
  mkdirSync(path)
  run('mount', '-o', 'loop', file, path)
  t.teardown(() => run('umount', path))
  return path
}

function openFile(t: Test, path: string, size: number): FileStore {
  const store = FileStore.open(path, { create: true, size: bytes(size) })
  t.teardown(() => store.close())
  return store
}

function attach(t: Test, size: number): string {
  const path = join(folder(t, '/dev/shm'), 'image')
  writeFileSync(path, '')
  truncateSync(path, size)
  const device = run('losetup', '--find', '--show', path)
  t.teardown(() => run('losetup', '--detach', device))
  return device
}

storeContract('memory', (_t, size) => new MemoryStore(size))
storeContract('memory without holes', (_t, size) => new MemoryStore(size, { punches: false }))
storeContract('file on tmpfs', (t, size) => openFile(t, join(folder(t, '/dev/shm'), 'store'), size))
storeContract('file on disk', (t, size) => openFile(t, join(folder(t, tmpdir()), 'store'), size))
storeContract('file on ramfs, which has no fallocate', (t, size) =>
  openFile(t, join(mounted(t, 'ramfs'), 'store'), size),
)
storeContract(
  'block device',
  (t, size) => {
    const store = FileStore.open(attach(t, size))
    t.teardown(() => store.close())
    return store
  },
  { grows: false },
)

t.test('a punched file gives its space back', async t => {
  const path = join(folder(t, '/dev/shm'), 'store')
  const store = openFile(t, path, MIB)
  t.equal(statSync(path).mode & 0o777, 0o600)
  store.write(Buffer.alloc(MIB, 1), 0, MIB, bytes(0))
  t.equal(statSync(path).blocks * 512, MIB)
  store.punch(bytes(0), bytes(MIB / 2))
  await store.punchLater(bytes(MIB / 2), bytes(MIB / 4))
  t.equal(statSync(path).blocks * 512, MIB / 4)
})

for (const type of ['ext4', 'xfs', 'btrfs']) {
  t.test(`on ${type} it is known what is in memory`, async t => {
    const path = join(image(t, type), 'store')
    const size = 2 * MIB
    const store = openFile(t, path, size)
    const content = randomBytes(size)
    store.write(content, 0, size, bytes(0))
    const found = Buffer.alloc(size)
    t.ok(store.readNow(found, 0, size, bytes(0)))
    t.ok(found.equals(content))
    await store.sync()
    run('dd', `of=${path}`, 'oflag=nocache', 'conv=notrunc,fdatasync', 'count=0', 'status=none')
    t.notOk(store.readNow(found, 0, size, bytes(0)), 'the cache was dropped')
    found.fill(0)
    await Promise.all(
      [0, 1, 2, 3].map(i =>
        store.readLater(found, (i * size) / 4, size / 4, bytes((i * size) / 4)),
      ),
    )
    t.ok(found.equals(content))
    t.ok(store.readNow(found, 0, size, bytes(0)), 'and is filled again')
  })

  t.test(`on ${type} a copy is a copy, shared or not`, async t => {
    const path = join(image(t, type), 'store')
    const store = openFile(t, path, 2 * MIB)
    t.equal(store.copiesShare, type !== 'ext4')
    const content = randomBytes(MIB)
    store.write(content, 0, MIB, bytes(0))
    await store.sync()
    store.copy(bytes(0), bytes(MIB), bytes(MIB))
    await store.sync()
    if (store.copiesShare) {
      const extents = run('filefrag', '-v', path).split('\n')
      t.match(extents.filter(line => /^ *\d+:/.test(line)).join('\n'), /shared/)
    }
    store.write(Buffer.alloc(100, 1), 0, 100, bytes(5000))
    const found = Buffer.alloc(MIB)
    store.read(found, 0, MIB, bytes(MIB))
    t.ok(found.equals(content), 'what is written to one is not in the other')
  })
}

t.test('many long copies at once: each is whole, and its holes stay holes', async t => {
  const size = 5 * MIB + 300
  const store = openFile(t, join(folder(t, tmpdir()), 'file'), 32 * size)
  const content = randomBytes(2 * MIB)
  const gap = bytes(2 * MIB)
  store.write(content, 0, MIB, bytes(0))
  store.write(content, MIB, MIB, bytes(4 * MIB))
  await store.sync()
  const before = statSync(store.path).blocks
  const targets = Array.from({ length: 12 }, (_, i) => bytes((i + 1) * 2 * size))
  await Promise.all(targets.map(to => store.copyLater(bytes(0), to, bytes(size), true)))
  const source = Buffer.alloc(size)
  store.read(source, 0, size, bytes(0))
  for (const at of targets) {
    const found = Buffer.alloc(size)
    store.read(found, 0, size, at)
    t.ok(found.equals(source))
    t.ok(store.nextData(bytes(at + gap)) > at + 3 * MIB, 'a hole')
  }
  const each = ((statSync(store.path).blocks - before) * 512) / targets.length
  t.ok(each < 2.2 * MIB, `${each} bytes a copy`)
  store.write(content, 0, MIB, gap)
  await store.copyLater(bytes(0), targets[0]!, bytes(size), false)
  await store.copyLater(bytes(20), targets[1]!, bytes(size - 20), false)
  store.read(source, 0, size, bytes(0))
  const found = Buffer.alloc(size)
  store.read(found, 0, size, targets[0]!)
  t.ok(found.equals(source))
  store.read(found, 0, size - 20, targets[1]!)
  t.ok(found.subarray(0, size - 20).equals(source.subarray(20)), 'at any byte')
})

t.test('only what can leave holes says so', async t => {
  t.ok(openFile(t, join(folder(t, '/dev/shm'), 'store'), MIB).punches)
  t.notOk(openFile(t, join(mounted(t, 'ramfs'), 'store'), MIB).punches)
  const device = FileStore.open(attach(t, MIB))
  t.teardown(() => device.close())
  t.notOk(device.punches)
})

t.test('a block device that has grown is taken as it is now', async t => {
  const device = attach(t, MIB)
  const store = FileStore.open(device)
  t.teardown(() => store.close())
  const image = run('losetup', '--noheadings', '--output', 'BACK-FILE', device)
  truncateSync(image, 2 * MIB)
  run('losetup', '--set-capacity', device)
  t.equal(store.size, MIB)
  store.grow(bytes(2 * MIB))
  t.equal(store.size, 2 * MIB)
})

t.test('errors carry path and errno', async t => {
  const full = join(mounted(t, 'tmpfs', 'size=64k'), 'store')
  const store = openFile(t, full, MIB)
  t.throws(() => store.write(Buffer.alloc(MIB, 1), 0, MIB, bytes(0)), {
    code: 'IO_ERROR',
    errno: 'ENOSPC',
    message: new RegExp(`^${full}: write of ${MIB} bytes at 0: ENOSPC`),
  })

  const path = join(folder(t, '/dev/shm'), 'store')
  const short = openFile(t, path, MIB)
  truncateSync(path, 4 * KIB)
  t.throws(() => short.read(Buffer.alloc(8 * KIB), 0, 8 * KIB, bytes(0)), {
    code: 'IO_ERROR',
    errno: 'EIO',
  })

  t.throws(() => FileStore.open(join(path, 'none')), { code: 'IO_ERROR', errno: 'ENOTDIR' })
  t.throws(() => FileStore.open(`${path}-none`), { code: 'IO_ERROR', errno: 'ENOENT' })
  t.throws(() => FileStore.open('/dev/null'), { code: 'BAD_ARGUMENT' })

  const reader = FileStore.open(path, { readOnly: true })
  t.teardown(() => reader.close())
  t.equal(reader.size, 4 * KIB)
  t.throws(() => reader.write(Buffer.alloc(1), 0, 1, bytes(0)), {
    code: 'IO_ERROR',
    errno: 'EBADF',
  })
})

t.test('one writer or many readers have the lock', async t => {
  const path = join(folder(t, '/dev/shm'), 'store')
  FileStore.open(path, { create: true }).close()
  t.throws(() => FileStore.open(path, { create: true }), { message: /EEXIST/ }, 'made once')
  const open = (readOnly: boolean): FileStore => FileStore.open(path, { readOnly })
  const [first, second] = [open(false), open(false)]
  t.ok(first.lock())
  t.notOk(second.lock())
  first.close()
  t.ok(second.lock(), 'the lock ends with the file that holds it')
  second.close()

  const readers = [open(true), open(true)]
  for (const reader of readers) t.ok(reader.lock())
  const writer = open(false)
  t.notOk(writer.lock())
  for (const store of [...readers, writer]) store.close()
})

t.test('a range that is none is our own mistake, and touches nothing', async t => {
  const path = join(folder(t, '/dev/shm'), 'store')
  const store = openFile(t, path, MIB)
  const buffer = Buffer.alloc(KIB, 1)
  const bug = { name: 'AssertionError' }
  for (const offset of [Number.NaN, -1, 0.5, Number.NEGATIVE_INFINITY]) {
    t.throws(() => store.write(buffer, 0, KIB, bytes(offset)), bug, `${offset}`)
    t.throws(() => store.read(buffer, 0, KIB, bytes(offset)), bug, `${offset}`)
    t.throws(() => store.punch(bytes(offset), bytes(KIB)), bug, `${offset}`)
    t.throws(() => store.punch(bytes(0), bytes(offset)), bug, `${offset}`)
    await t.rejects(store.readLater(buffer, 0, KIB, bytes(offset)), bug, `${offset}`)
    await t.rejects(store.punchLater(bytes(offset), bytes(KIB)), bug, `${offset}`)
  }
  const refused: [no: number, by: ErrorConstructor][] = [
    [Number.NaN, TypeError],
    [0.5, TypeError],
    [Number.POSITIVE_INFINITY, TypeError],
    ['1' as unknown as number, TypeError],
    [2 ** 53, RangeError],
  ]
  for (const [no, by] of refused) {
    t.throws(() => native.file_write(store.fd, buffer, 0, KIB, no), by, `offset ${no}`)
    t.throws(() => native.file_write(store.fd, buffer, no, 1, 0), by, `at ${no}`)
    t.throws(() => native.file_allocate(store.fd, 3, no, KIB), by, `punch at ${no}`)
  }
  t.equal(statSync(path).blocks, 0, 'nothing was written')
})

t.test('a file that answers nothing any more is said to have neither room nor no name', async t => {
  const store = FileStore.open(join(t.testdir({ store: 'content' }), 'store'))
  t.not(store.hostRoom(), null)
  closeSync(store.fd)
  t.equal(store.hostRoom(), null)
  t.notOk(store.isRemoved)
})
