import { readdirSync, readFileSync, statSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { AtomicFile } from '../../src/storage/index.js'

t.test('reads null until there is a file, then what was put there last', async t => {
  const path = join(t.testdir(), 'file')
  const file = new AtomicFile(path)
  t.equal(file.read(100), null)
  await file.replace('old and longer\n')
  await file.replace('new\n')
  t.equal(file.read(100), 'new\n')
  t.equal(readFileSync(path, 'utf8'), 'new\n')
  t.equal(statSync(path).mode & 0o777, 0o600)
})

t.test('a temporary file that a power cut left is written over', async t => {
  const folder = t.testdir({ file: 'old\n', 'file.new': 'torn, and longer than what follows' })
  const file = new AtomicFile(join(folder, 'file'))
  t.equal(file.read(100), 'old\n')
  await file.replace('new\n')
  t.equal(file.read(100), 'new\n')
  t.same(readdirSync(folder), ['file', 'file.new'])
})

t.test('a symlink in its place is replaced, not followed', async t => {
  const folder = t.testdir({ other: 'elsewhere\n' })
  const path = join(folder, 'file')
  symlinkSync(join(folder, 'other'), path)
  await new AtomicFile(path).replace('new\n')
  t.equal(readFileSync(join(folder, 'other'), 'utf8'), 'elsewhere\n')
})

t.test('a failure leaves the old content', async t => {
  const folder = t.testdir({ file: 'old\n', 'file.new': {} })
  const file = new AtomicFile(join(folder, 'file'))
  await t.rejects(file.replace('new\n'), { code: 'EISDIR' })
  t.equal(file.read(100), 'old\n')
  writeFileSync(join(folder, 'plain'), '')
  t.throws(() => new AtomicFile(join(folder, 'plain', 'file')).read(100), { code: 'ENOTDIR' })
})
