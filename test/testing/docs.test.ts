// Goal: the examples of docs/TESTING.md work as they stand there, in the test runners that they are
// for. Method: a project of its own, which has thinfs as a package.
import { mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import t from 'tap'
import { attempt, needs } from '../support/mounted-pool.js'

const ROOT = resolve(import.meta.dirname, '../..')

/** By what each example is run, and what its output says of its cases. */
const RUNNERS: Readonly<Record<string, { command: string[]; says: RegExp }>> = {
  'sqlite.test.js': { command: ['node', '--test', '--test-reporter=tap'], says: /^# pass 3$/m },
  'disk.test.js': { command: ['node'], says: /# \{ total: 3, pass: 3 \}/ },
  'upgrade.test.js': {
    command: ['vitest', 'run', '--testTimeout=100000', '--no-color'],
    says: /Tests +2 passed/,
  },
  'pool.sh': { command: ['bash', '-eu'], says: /Ran 2 tests/ },
}

/** Code blocks by the name that their first line has in a comment. */
const examples = new Map(
  [
    ...readFileSync(join(ROOT, 'docs/TESTING.md'), 'utf8').matchAll(
      /^```\w+\n((?:\/\/|#) ([\w.]+)(?:.*\n)+?)```$/gm,
    ),
  ].map(([, text, name]) => [name!, text!]),
)

t.same([...examples.keys()].sort(), Object.keys(RUNNERS).sort(), 'each example has a runner')

const folder = mkdtempSync(join(tmpdir(), 'thinfs-docs-'))
t.teardown(() => rmSync(folder, { recursive: true }))
mkdirSync(join(folder, 'node_modules/.bin'), { recursive: true })
for (const name of ['tap', 'vitest']) {
  symlinkSync(join(ROOT, 'node_modules', name), join(folder, 'node_modules', name))
}
symlinkSync(ROOT, join(folder, 'node_modules/thinfs'))
symlinkSync(join(ROOT, 'node_modules/.bin/vitest'), join(folder, 'node_modules/.bin/vitest'))
symlinkSync(join(ROOT, 'bin/thinfs.js'), join(folder, 'node_modules/.bin/thinfs'))
writeFileSync(join(folder, 'package.json'), '{ "type": "module" }')

for (const [name, text] of examples) {
  t.test(name, needs('/dev/fuse', '/dev/loop-control'), async t => {
    writeFileSync(join(folder, name), text)
    const { command, says } = RUNNERS[name]!
    const { status, stdout, stderr } = await attempt(
      'env',
      // This test's own runner says so to what it runs: an example is not one of its files.
      ...['TAP', 'TAP_CHILD_ID', 'TAP_CHILD_KEY', 'TAP_JOB_ID'].flatMap(name => ['-u', name]),
      ...['-C', folder, `XDG_CACHE_HOME=${folder}`],
      `PATH=${folder}/node_modules/.bin:${process.env.PATH}`,
      ...command,
      name,
    )
    t.equal(status, 0, `${stdout}${stderr}`)
    t.match(`${stdout}${stderr}`, says)
  })
}
