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

t.test('an owner that was stopped puts nothing in place of what came after him', async t => {
  const path = join(t.testdir({ file: 'first\n', 'file.new': 'spare' }), 'file')
  const later = new AtomicFile(path, path, { name: 'b2', mayReplace: () => {} })
  const earlier = new AtomicFile(path, path, {
    name: 'a1',
    // He has looked whether he may, and sleeps.
    async mayReplace() {
      await later.dropOtherSpares()
      for (const content of ['second, and longer\n', 'third\n']) await later.replace(content)
    },
  })
  await t.rejects(earlier.replace('late\n'), { code: 'ENOENT' })
  t.equal(later.read(100), 'third\n')
  await later.replace('fourth\n')
  t.equal(later.read(100), 'fourth\n')
  t.same(readdirSync(join(path, '..')), ['file', 'file.b2.new'])

  const refused = new AtomicFile(path, path, {
    name: 'c3',
    mayReplace: () => Promise.reject(new Error('taken over')),
  })
  await t.rejects(refused.replace('late\n'), { message: 'taken over' })
  t.equal(later.read(100), 'fourth\n')
})
