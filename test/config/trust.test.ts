// Goal: nobody gets thinfs, run by root or by another user, to follow what he has written. Method:
// folders of every owner and mode, and things of every kind where thinfs keeps its files, read by
// this process as root and as somebody else.
import {
  chmodSync,
  chownSync,
  existsSync,
  linkSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  realpathSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { bytes } from '../../src/base/index.js'
import { loadConfig } from '../../src/config/index.js'
import { AtomicFile, FileStore } from '../../src/storage/index.js'
import { PoolFiles } from '../../src/volumes/index.js'
import { needs, run } from '../support/mounted-pool.js'

const NOBODY = 65534
const OTHER = 1234
/** To be somebody else. */
const asRoot = needs()

/** Calls with the rights of a user. */
function as<T>(uid: number, call: () => T): T {
  process.seteuid!(uid)
  try {
    return call()
  } finally {
    process.seteuid!(0)
  }
}

/** A folder as open as /tmp, and in it one with a pool.yaml, of a user's. */
function poolOf(t: Test, uid: number): { base: string; folder: string; file: string } {
  const base = realpathSync(mkdtempSync(join(tmpdir(), 'thinfs-trust-')))
  t.teardown(() => rmSync(base, { recursive: true }))
  chmodSync(base, 0o1777)
  const folder = join(base, 'pool')
  const file = join(folder, 'pool.yaml')
  mkdirSync(folder, { mode: 0o755 })
  writeFileSync(file, 'pool: p\n')
  for (const path of [folder, file]) chownSync(path, uid, uid)
  return { base, folder, file }
}

function refuses(t: Test, uid: number, file: string, message: string | RegExp): void {
  t.throws(() => as(uid, () => loadConfig(file)), { code: 'NOT_TRUSTED', errno: 'EPERM', message })
}

t.test('root follows root, a user himself and root', asRoot, async t => {
  for (const [owner, uid, follows] of [
    [0, 0, true],
    [NOBODY, 0, false],
    [0, NOBODY, true],
    [NOBODY, NOBODY, true],
    [OTHER, NOBODY, false],
  ] as const) {
    const { folder, file } = poolOf(t, owner)
    if (follows) {
      t.equal(as(uid, () => loadConfig(file)).folder, folder)
      continue
    }
    const wanted = uid === 0 ? 'root' : `root or user ${uid}`
    refuses(t, uid, file, `${file}: belongs to user ${owner}, wanted ${wanted}`)
    // The file may be one's own and the folder not: others in it are then another's to replace.
    chownSync(file, uid, uid)
    refuses(t, uid, file, `${folder}: belongs to user ${owner}, wanted ${wanted}`)
    // By way of a link of one's own, too: what it leads to counts.
    const link = join(folder, '..', 'link.yaml')
    symlinkSync(file, link)
    refuses(t, uid, link, `${folder}: belongs to user ${owner}, wanted ${wanted}`)
  }
})

t.test('what others may write to is not followed', asRoot, async t => {
  const { base, folder, file } = poolOf(t, NOBODY)
  for (const name of ['volumes.json', 'journal', 'daemon.json', 'thinfs.log']) {
    writeFileSync(join(folder, name), '')
    chownSync(join(folder, name), NOBODY, NOBODY)
    as(NOBODY, () => loadConfig(file))
  }
  for (const name of ['pool.yaml', 'volumes.json', 'journal', 'daemon.json', 'thinfs.log', '.']) {
    const path = join(folder, name)
    const mode = lstatSync(path).mode & 0o777
    for (const more of [0o020, 0o002]) {
      chmodSync(path, mode | more)
      const found = (mode | more).toString(8)
      const message = `${path}: has mode ${found}, wanted one that lets no others write (chmod go-w)`
      refuses(t, NOBODY, file, message)
    }
    chmodSync(path, mode)
  }
  chmodSync(base, 0o777)
  refuses(
    t,
    NOBODY,
    file,
    `${base}: everybody may write to it, wanted a sticky bit at least (chmod +t)`,
  )
  chmodSync(base, 0o775)
  t.doesNotThrow(() => as(NOBODY, () => loadConfig(file)))
})

t.test('links and other things where thinfs keeps its files', asRoot, async t => {
  const { base, folder, file } = poolOf(t, 0)
  const target = join(base, 'target')
  for (const name of ['volumes.json', 'journal', 'daemon.json', 'thinfs.log']) {
    for (const suffix of ['', '.new']) {
      const path = join(folder, name + suffix)
      for (const put of [() => symlinkSync(target, path), () => mkdirSync(path)]) {
        put()
        refuses(t, 0, file, `${path}: is not a regular file`)
        rmSync(path, { recursive: true })
      }
      writeFileSync(path, '')
      chownSync(path, NOBODY, NOBODY)
      refuses(t, 0, file, `${path}: belongs to user 65534, wanted root`)
      rmSync(path)
    }
  }
  t.doesNotThrow(() => loadConfig(file))
  t.notOk(existsSync(target))
})

t.test('data and metadata may be links, not files of others', asRoot, async t => {
  const { base } = poolOf(t, 0)
  const path = join(base, 'data')
  const link = join(base, 'link')
  FileStore.open(path, { create: true, size: bytes(4096) }).close()
  t.equal(lstatSync(path).mode & 0o7777, 0o600)
  symlinkSync(path, link)
  FileStore.open(link).close()
  for (const [change, message] of [
    [() => chownSync(path, OTHER, OTHER), 'belongs to user 1234, wanted root'],
    [() => chmodSync(path, 0o620), /^.*\/link: has mode 620, wanted/],
    [() => chmodSync(path, 0o602), /^.*\/link: has mode 602, wanted/],
  ] as const) {
    change()
    t.throws(() => FileStore.open(link), { code: 'NOT_TRUSTED', message })
    t.throws(() => FileStore.open(link, { readOnly: true }), { code: 'NOT_TRUSTED', message })
    chownSync(path, 0, 0)
    chmodSync(path, 0o600)
  }
})

t.test('a file is not replaced by way of a link', async t => {
  const folder = t.testdir({
    target: 'precious',
    file: 'old',
    'file.new': t.fixture('symlink', 'target'),
  })
  await new AtomicFile(join(folder, 'file')).replace('new')
  t.notOk(lstatSync(join(folder, 'file')).isSymbolicLink())
  t.equal(lstatSync(join(folder, 'target')).size, 8)
  t.equal(lstatSync(join(folder, 'file')).mode & 0o7777, 0o600)
})

t.test("what root reads of another user's copy is that user's alone", asRoot, async t => {
  const { base, folder, file } = poolOf(t, NOBODY)
  const path = (name: string): string => join(folder, name)
  const precious = join(base, 'precious')
  writeFileSync(precious, '')
  const fill = (yaml: string): void => writeFileSync(file, yaml)
  const put = (name: string): void => {
    writeFileSync(path(name), '')
    chownSync(path(name), NOBODY, NOBODY)
  }
  for (const name of ['data', 'metadata', 'volumes.json', 'journal']) put(name)
  const read = (): void => PoolFiles.open(loadConfig(file, { reads: true }), true).close()
  t.doesNotThrow(read)
  t.throws(() => loadConfig(file), { code: 'NOT_TRUSTED' })

  symlinkSync(path('journal'), path('link'))
  await run('mkfifo', path('fifo'))
  chownSync(path('fifo'), NOBODY, NOBODY)
  for (const target of [
    '/etc/shadow',
    '/dev/null',
    '/dev/fuse',
    path('link'),
    path('fifo'),
    precious,
  ]) {
    for (const which of ['data', 'metadata']) {
      fill(`pool: p\n${which}: { path: ${target}, size: 16M }\n`)
      t.throws(read, { code: 'NOT_TRUSTED', message: new RegExp(`^${target}: `) }, target)
    }
  }
  fill('pool: p\n')
  for (const name of ['volumes.json', 'journal', 'metadata', 'pool.yaml']) {
    for (const spoil of [symlinkSync.bind(null, precious), linkSync.bind(null, precious)]) {
      rmSync(path(name))
      spoil(path(name))
      t.throws(read, { code: 'NOT_TRUSTED' }, name)
      rmSync(path(name))
      put(name)
    }
  }
  fill('pool: p\n')
  t.doesNotThrow(read)
  t.throws(() => as(OTHER, () => loadConfig(file, { reads: true })), { code: 'NOT_TRUSTED' })
})
