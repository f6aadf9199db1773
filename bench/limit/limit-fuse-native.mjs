/**
 * fuse-native alone, as it comes: serves a sparse file as `volume`, and does nothing else.
 *
 * Arguments: the mount point, the file. Ends with its mount left behind when it is ended.
 */
import { fstatSync, openSync, read, write } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'

const require = createRequire(import.meta.url)
const RTLD_NOW = 2
const RTLD_NODELETE = 0x1000
const [, , mountPoint, path] = process.argv
const fd = openSync(path, 'r+')

const folder = dirname(require.resolve('fuse-native/package.json'))
try {
  // It is no addon, which is an error, and stays loaded: fuse-native finds it by its name.
  const library = join(folder, `prebuilds/linux-${process.arch}/libfuse.so`)
  process.dlopen({ exports: {} }, library, RTLD_NOW | RTLD_NODELETE)
} catch {}
const Fuse = require('fuse-native')

/** Its options have no big_writes: every write would come as 4 KiB. */
class Mount extends Fuse {
  _fuseOptions() {
    return '-obig_writes,default_permissions'
  }
}

const ROOT = { mode: 0o40755, nlink: 2, size: 0 }
const isRoot = name => name === '/'
const operations = {
  readdir: (_, done) => done(0, ['volume']),
  getattr: (name, done) =>
    isRoot(name) ? done(0, ROOT) : name === '/volume' ? done(0, fstatSync(fd)) : done(Fuse.ENOENT),
  fgetattr: (name, _, done) => operations.getattr(name, done),
  open: (_, __, done) => done(0, 1),
  release: (_, __, done) => done(0),
  fsync: (_, __, ___, done) => done(0),
  read: (_, __, to, size, offset, done) =>
    read(fd, to, 0, size, offset, (err, got) => done(err ? Fuse.EIO : got)),
  write: (_, __, from, size, offset, done) =>
    write(fd, from, 0, size, offset, (err, put) => done(err ? Fuse.EIO : put)),
}

new Mount(mountPoint, operations, { timeout: false }).mount(err => {
  if (!err) return
  console.error(err)
  process.exit(1)
})
