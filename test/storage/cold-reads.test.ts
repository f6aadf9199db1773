// Goal: reads that wait for a disk bring what is in the file, however many there are and whoever
// does them. Method: a file of random bytes that is in no cache, read by io_uring, by more than it
// takes, and where it is not allowed.
import { execFileSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { closeSync, mkdtempSync, openSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import { KIB } from '../../src/base/index.js'
import { native } from '../../src/native.js'
import { ColdReads } from '../../src/storage/cold-reads.js'

const BLOCK = 4 * KIB
const NR_BLOCKS = 2000

const folder = mkdtempSync(join(tmpdir(), 'thinfs-cold-'))
const path = join(folder, 'file')
const content = randomBytes(NR_BLOCKS * BLOCK - 100)
writeFileSync(path, content)
const fd = openSync(path, 'r')
t.teardown(() => {
  closeSync(fd)
  rmSync(folder, { recursive: true })
})

async function readAllAtOnce(reads: ColdReads): Promise<Buffer> {
  const found = Buffer.alloc(content.length)
  const at = Array.from({ length: NR_BLOCKS }, (_, i) => i * BLOCK)
  await Promise.all(
    at.map(at => reads.read(fd, found, at, Math.min(BLOCK, content.length - at), at)),
  )
  return found
}

t.test('more reads than a ring has room for', async t => {
  const reads = new ColdReads()
  t.teardown(() => reads.close())
  t.ok((await readAllAtOnce(reads)).equals(content))
  t.ok((await readAllAtOnce(reads)).equals(content), 'and again')
})

t.test('a cache that loses what the disk has brought before it is taken', async t => {
  const reads = new ColdReads()
  t.teardown(() => reads.close())
  const dropCache = (): void => {
    execFileSync('dd', [`of=${path}`, 'oflag=nocache', 'conv=notrunc,fdatasync', 'count=0'])
  }
  dropCache()
  const found = Buffer.alloc(200 * BLOCK)
  // Far from each other, so that no read is ahead of the next.
  const places = Array.from({ length: 200 }, (_, i) => (i * 9 + 4) * BLOCK)
  const all = places.map((from, i) => reads.read(fd, found, i * BLOCK, BLOCK, from))
  await Promise.resolve()
  // The ring is not looked at meanwhile. Afterwards each read has to wait for the disk once more.
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 300)
  dropCache()
  await Promise.all(all)
  const wanted = places.map(from => content.subarray(from, from + BLOCK))
  t.ok(found.equals(Buffer.concat(wanted)))
})

t.test('without a ring', async t => {
  const open = native.ring_open
  native.ring_open = () => {
    throw Object.assign(new Error('EPERM: io_uring_setup'), { code: 'EPERM' })
  }
  t.teardown(() => {
    native.ring_open = open
  })
  const reads = new ColdReads()
  t.ok((await readAllAtOnce(reads)).equals(content))
  await t.rejects(reads.read(-1, Buffer.alloc(1), 0, 1, 0), 'a bad descriptor')
  reads.close()
})

t.test('what cannot be read is an error of the one who asked', async t => {
  const reads = new ColdReads()
  t.teardown(() => reads.close())
  const found = Buffer.alloc(BLOCK)
  const [pastEnd, badFile, good] = await Promise.allSettled([
    reads.read(fd, found, 0, BLOCK, content.length - 10),
    reads.read(-1, found, 0, BLOCK, 0),
    reads.read(fd, found, 0, BLOCK, BLOCK),
  ])
  t.match(pastEnd, { status: 'rejected', reason: { code: 'EOF' } })
  t.match(badFile, { status: 'rejected', reason: { code: 'EBADF', syscall: 'read' } })
  t.equal(good.status, 'fulfilled')
})
