import { mkdtempSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { bytes, KIB } from '../../src/base/index.js'
import { ExtentStore, FileStore, StripedStore } from '../../src/storage/index.js'
import { storeContract } from '../contract/store.js'

const MARK = 0x5a

/** So many stripes: parts of files of their own, from 8 KiB on; what is around them is marked. */
function stripes(
  t: Test,
  count: number,
  size: number,
): { parts: ExtentStore[]; files: FileStore[] } {
  const folder = mkdtempSync('/dev/shm/thinfs-stripes-')
  t.teardown(() => rmSync(folder, { recursive: true, force: true }))
  const whole = size + 16 * KIB
  const files = Array.from({ length: count }, (_, i) => {
    const file = FileStore.open(join(folder, `${i}`), { create: true, size: bytes(whole) })
    t.teardown(() => file.close())
    file.write(Buffer.alloc(whole, MARK), 0, whole, bytes(0))
    file.punch(bytes(8 * KIB), bytes(size))
    return file
  })
  const parts = files.map(store => {
    return new ExtentStore('part', [{ store, offset: bytes(8 * KIB), length: bytes(size) }])
  })
  return { parts, files }
}

storeContract(
  'two stripes of 16 KiB',
  (t, size) => new StripedStore('stripes', 16 * KIB, stripes(t, 2, size / 2).parts),
  { grows: false },
)

t.test('chunks are where the kernel has them, and what is around the stripes is left alone', t => {
  const chunk = 4 * KIB
  const [count, rows] = [3, 5]
  const { parts, files } = stripes(t, count, rows * chunk)
  const store = new StripedStore('stripes', chunk, parts)
  t.equal(store.size, count * rows * chunk)
  const all = Buffer.alloc(store.size)
  for (let nr = 0; nr < count * rows; nr++) all.fill(nr + 1, nr * chunk, (nr + 1) * chunk)
  store.write(all, 0, all.length, bytes(0))
  for (const [i, file] of files.entries()) {
    const found = Buffer.alloc(file.size)
    file.read(found, 0, found.length, bytes(0))
    const wanted = Buffer.alloc(file.size, MARK)
    // Chunk n is in stripe n % count, behind n / count others.
    for (let nr = i; nr < count * rows; nr += count) {
      const at = 8 * KIB + Math.floor(nr / count) * chunk
      wanted.fill(nr + 1, at, at + chunk)
    }
    t.ok(found.equals(wanted), `stripe ${i}`)
  }
  t.end()
})

t.test('it ends with the last whole row of the shortest stripe', t => {
  const { parts } = stripes(t, 2, 24 * KIB)
  t.equal(new StripedStore('stripes', 16 * KIB, parts).size, 32 * KIB)
  t.end()
})
