// Goal: what is cleared reads as zeros, also on a file system that says that it clears and does
// not. Method: one that is served by this machine and lies as GlusterFS does about
// FALLOC_FL_ZERO_RANGE, as servers of objects do about parts of those, or not at all.
import { readdirSync, readFileSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { bytes, KIB } from '../../src/base/index.js'
import { TRANSPORTS } from '../../src/fuse/index.js'
import { FileStore } from '../../src/storage/index.js'
import { FolderMount } from '../support/folder-mount.js'

const SIZE = 512 * KIB

for (const { lies, punches } of [
  { lies: undefined, punches: true },
  { lies: 'zero', punches: true },
  { lies: 'objects', punches: false },
] as const) {
  t.test(`on a file system that lies about ${lies ?? 'nothing'}`, async t => {
    const mount = await FolderMount.make(t, TRANSPORTS.dev, lies === undefined ? {} : { lies })
    const path = join(mount.path, 'store')
    writeFileSync(join(mount.folder, 'store'), '')
    truncateSync(join(mount.folder, 'store'), SIZE)
    const store = FileStore.open(path)
    t.teardown(() => store.close())
    store.write(Buffer.alloc(SIZE, 7), 0, SIZE, bytes(0))
    await store.sync()
    t.equal(store.punches, punches, 'it is used for what it does')
    const expected = Buffer.alloc(SIZE, 7)
    for (const [what, offset, length] of [
      ['punch', 4 * KIB, 4 * KIB],
      ['punch', 70_001, 90_000],
      ['zero', 192 * KIB, 64 * KIB],
      ['zero', 300_001, 1000],
      ['punchLater', 400_000, 5000],
    ] as const) {
      await store[what](bytes(offset), bytes(length))
      expected.fill(0, offset, offset + length)
    }
    const found = Buffer.alloc(SIZE)
    store.read(found, 0, SIZE, bytes(0))
    t.ok(found.equals(expected), 'as it is seen here')
    await store.sync()
    t.ok(readFileSync(join(mount.folder, 'store')).equals(expected), 'and on the server')
    t.same(readdirSync(mount.folder), ['store'], 'nothing is left of the trial')
  })
}
