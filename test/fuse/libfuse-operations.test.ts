// Goal: what fuse-native asks for by path reaches the file system, and its answers and errors come
// back. Method: its operations are called as it calls them.
import t from 'tap'
import { ThinfsError } from '../../src/base/index.js'
import type { FileSystem } from '../../src/fuse/index.js'
import { libfuseOperations } from '../../src/fuse/libfuse-operations.js'
import { LibfuseRequests } from '../../src/fuse/libfuse-requests.js'
import { fileSystem } from '../support/fake-kernel.js'

const PART = 128 * 1024
const ENOSPC = -28

function make(methods: Partial<FileSystem>) {
  const fs = fileSystem({ open: () => {}, release: () => {}, fsync: () => {}, ...methods })
  const requests = new LibfuseRequests({
    fileSystem: fs,
    onError: () => {},
    onFatal: err => t.fail('a bug', { err }),
  })
  return libfuseOperations(fs, requests, () => {})
}

const answer = (ask: (done: (result: number, value?: number) => void) => void) =>
  new Promise<number>(resolve => {
    ask((result, value) => resolve(value ?? result))
  })

t.test('a part of a write that fails behind another is told by the next fsync as well', async t => {
  for (const firstSize of [PART, 4096]) {
    const operations = make({
      getattr: () => ({ ino: 5 }) as never,
      lookup: () => ({ ino: 5 }) as never,
      write: (_ino, offset, size) => {
        if (offset > 0) throw new ThinfsError('NO_DATA_SPACE', 'full')
        return size
      },
    })
    const fh = await answer(done => operations.open('/a', 2, done))
    const write = (offset: number, size: number) =>
      answer(done => operations.write('/a', fh, Buffer.alloc(size), size, offset, done))
    const fsync = () => answer(done => operations.fsync('/a', 0, fh, done))
    t.equal(await write(0, firstSize), firstSize)
    t.equal(await write(firstSize, 4096), ENOSPC)
    t.equal(await fsync(), firstSize === PART ? ENOSPC : 0)
    t.equal(await fsync(), 0)
  }
})
