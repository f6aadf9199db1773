// Goal: no volume gets a name that could mean anything but a file in the mount, by whatever door
// the name comes. Method: every bad name at every door; the list of volumes has to be as it was.
// The doors for bytes of the kernel's, and for shells, are in test/mount/tools.test.ts.
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { parseConfig } from '../../src/config/index.js'
import { VolumeFs } from '../../src/fs/index.js'
import { openPool } from '../../src/volumes/index.js'
import { makePool } from '../support/pool-files.js'

const ROOT = 1
const NOREPLACE = 1
const CALLER = { uid: 0, gid: 0, pid: 1 }

const BAD = [
  '',
  '.',
  '..',
  '/',
  '../a',
  '/etc/passwd',
  'a/b',
  'a/',
  './a',
  'a\0b',
  'a\nb',
  'a\rb',
  'a\tb',
  '\x1b[2J',
  'a\x7f',
  'a\x85',
  'a\ud800',
  '\udc00a',
  '.thinfs',
  '.thinfs.journal',
  'thin-1',
  'thin-16777216',
  'x'.repeat(256),
  'é'.repeat(128),
]
/**
 * What one may be called: nothing of it means anything to a shell or a program that is not told to.
 */
const GOOD = [
  '-rf',
  '--',
  '~',
  '$(reboot)',
  '`reboot`',
  ';',
  '*',
  '"',
  "'",
  '\\',
  ' ',
  '...',
  'a..',
]
/** The same letter, composed and not: two names, as on Linux filesystems. */
const COMPOSED = ['\u00e9', 'e\u0301']

t.test('at every door', async t => {
  const config = await makePool(t.testdir({}), { volumes: { web: { size: 512 } } })
  const table = join(config.folder, 'volumes.json')
  const { volumes, close } = await openPool(config)
  const fs = new VolumeFs(volumes, { uid: 0, gid: 0 }, 0)
  const doors: Record<string, (name: string) => Promise<unknown>> = {
    'command create': name => volumes.create({ name, size: 512 }),
    'command snapshot': name => volumes.snapshot({ origin: 'web', name }),
    'command rename': to => volumes.rename({ from: 'web', to }),
    'FUSE create': name => fs.create(ROOT, name, 0o600, CALLER),
    'FUSE rename': name => fs.rename(ROOT, 'web', ROOT, name, 0, 1),
    'FUSE rename without replacing': name => fs.rename(ROOT, 'web', ROOT, name, NOREPLACE, 1),
    'pool.yaml': async name =>
      parseConfig(
        `pool: p\nvolumes: { ${JSON.stringify(name)}: { size: 1M } }\n`,
        'pool.yaml',
        '/pool.yaml',
      ),
  }
  const before = readFileSync(table, 'utf8')
  for (const name of BAD) {
    for (const [door, enter] of Object.entries(doors)) {
      const code = door === 'pool.yaml' ? 'BAD_CONFIG' : 'BAD_NAME'
      await t.rejects(enter(name), { code, errno: 'EINVAL' }, `${door}: ${JSON.stringify(name)}`)
    }
  }
  t.same(
    (await volumes.list()).map(({ name }) => name),
    ['web'],
  )
  t.equal(readFileSync(table, 'utf8'), before)

  const good = [...GOOD, ...COMPOSED, 'x'.repeat(255)]
  for (const name of good) await volumes.create({ name, size: 512 })
  for (const name of good) t.equal(fs.lookup(ROOT, name).size, 512, name)
  await close()

  // A table that somebody has edited.
  const text = readFileSync(table, 'utf8')
  for (const name of BAD) {
    writeFileSync(table, text.replace('"name": "web"', `"name": ${JSON.stringify(name)}`))
    await t.rejects(
      openPool(config),
      { code: 'POOL_MISMATCH', message: /name: is not a volume name/ },
      `volumes.json: ${JSON.stringify(name)}`,
    )
  }
  writeFileSync(table, text)
  const again = await openPool(config)
  t.same(new Set((await again.volumes.list()).map(({ name }) => name)), new Set(['web', ...good]))
  await again.close()
})
