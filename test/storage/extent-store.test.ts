import { execFileSync } from 'node:child_process'
import { mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { bytes, KIB } from '../../src/base/index.js'
import { ExtentStore, FileStore, SharedFiles, type StorePart } from '../../src/storage/index.js'
import { storeContract } from '../contract/store.js'

const MARK = 0x5a

function folder(t: Test): string {
  const path = mkdtempSync('/dev/shm/thinfs-extents-')
  t.teardown(() => rmSync(path, { recursive: true, force: true }))
  return path
}

/** Parts of two files, in another order than there; what is between them is marked. */
function partsOf(t: Test, size: number): { parts: StorePart[]; files: FileStore[] } {
  const path = folder(t)
  const files = ['a', 'b'].map(name => {
    const file = FileStore.open(join(path, name), { create: true, size: bytes(2 * size) })
    t.teardown(() => file.close())
    file.write(Buffer.alloc(2 * size, MARK), 0, 2 * size, bytes(0))
    return file
  })
  const [a, b] = files as [FileStore, FileStore]
  const part = (store: FileStore, offset: number, length: number): StorePart => {
    store.punch(bytes(offset), bytes(length))
    return { store, offset: bytes(offset), length: bytes(length) }
  }
  const third = Math.floor(size / 3 / (4 * KIB)) * 4 * KIB
  return {
    parts: [part(a, size, third), part(b, 4 * KIB, third), part(a, 8 * KIB, size - 2 * third)],
    files,
  }
}

storeContract('parts of files', (t, size) => new ExtentStore('extents', partsOf(t, size).parts), {
  grows: false,
})

t.test('what no part has is left alone', t => {
  const size = 96 * KIB
  const { parts, files } = partsOf(t, size)
  const store = new ExtentStore('extents', parts)
  store.write(Buffer.alloc(size, 1), 0, size, bytes(0))
  for (const file of files) {
    const all = Buffer.alloc(file.size)
    file.read(all, 0, all.length, bytes(0))
    for (const { offset, length } of parts.filter(part => part.store === file)) {
      t.ok(all.subarray(offset, offset + length).every(byte => byte === 1))
      all.fill(MARK, offset, offset + length)
    }
    t.ok(all.every(byte => byte === MARK))
  }
  t.end()
})

t.test('a longer list makes it longer; a file that was cut off makes it shorter', t => {
  const path = join(folder(t), 'file')
  const file = FileStore.open(path, { create: true, size: bytes(96 * KIB) })
  t.teardown(() => file.close())
  const part = (offset: number): StorePart => {
    return { store: file, offset: bytes(offset * KIB), length: bytes(32 * KIB) }
  }
  const store = new ExtentStore('extents', [part(64)])
  store.write(Buffer.from('kept'), 0, 4, bytes(0))
  store.replace([part(64), part(0)])
  t.equal(store.size, 64 * KIB)
  store.write(Buffer.from('new'), 0, 3, bytes(32 * KIB))
  const found = Buffer.alloc(64 * KIB)
  store.read(found, 0, found.length, bytes(0))
  t.equal(found.toString('latin1', 0, 4), 'kept')
  t.equal(found.toString('latin1', 32 * KIB, 32 * KIB + 3), 'new')
  truncateSync(path, 80 * KIB)
  store.measure()
  t.equal(store.size, 16 * KIB, 'the first part ends early, and no other counts')
  t.end()
})

t.test('a file under several names is open once, and locked for all of them', t => {
  const path = folder(t)
  writeFileSync(join(path, 'a'), 'x'.repeat(4096))
  execFileSync('ln', [join(path, 'a'), join(path, 'b')])
  const files = new SharedFiles()
  const file = files.take(join(path, 'a'), false)
  t.equal(files.take(join(path, 'b'), false), file)
  const other = new SharedFiles()
  t.throws(() => other.take(join(path, 'a'), false), { code: 'POOL_IN_USE' })
  files.release(file)
  t.throws(() => other.take(join(path, 'a'), false), { code: 'POOL_IN_USE' }, 'one user is left')
  files.release(file)
  other.release(other.take(join(path, 'a'), false))
  t.throws(() => files.take(join(path, 'c'), false), { code: 'IO_ERROR', errno: 'ENOENT' })
  t.end()
})
