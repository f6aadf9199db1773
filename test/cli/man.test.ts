// Goal: the manual pages are made of the commands there are, and are mdoc(7). Method: mandoc judges
// them, and renders them.
import { mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import t from 'tap'
import { commandLine } from '../../src/cli/main.js'
import { run } from './command-line.js'

const SCRIPT = resolve(import.meta.dirname, '../../scripts/man.ts')

/** Without what a printer of old strikes twice. */
const rendered = async (path: string): Promise<string> =>
  (await run('mandoc', '-Tutf8', path)).stdout.replaceAll(/.[\b]/g, '')

t.test('man pages', async t => {
  const folder = mkdtempSync(join(tmpdir(), 'thinfs-man-'))
  t.teardown(() => rmSync(folder, { recursive: true }))
  const made = await run(process.execPath, '--import=tsx', SCRIPT, folder)
  t.same(made, { status: 0, stdout: '', stderr: '' })
  const commands = commandLine().commands.map(command => `thinfs-${command.name()}.8`)
  t.same(readdirSync(join(folder, 'man8')).sort(), ['thinfs.8', ...commands].sort())
  const pages = [
    'man5/pool.yaml.5',
    ...readdirSync(join(folder, 'man8')).map(name => `man8/${name}`),
  ]
  const paths = pages.map(name => join(folder, name))
  t.same(await run('mandoc', '-Tlint', '-Wwarning', ...paths), {
    status: 0,
    stdout: '',
    stderr: '',
  })
  const shown = await rendered(join(folder, 'man8/thinfs-list.8'))
  t.match(shown, /^NAME\n {5}thinfs-list – List the volumes/m)
  t.match(shown, /^ {5}--sort <columns>\n {13}as in size,name/im)
  const yaml = await rendered(join(folder, 'man5/pool.yaml.5'))
  t.match(yaml, /^ {5}queue_timeout\n[\s\S]*Allowed: seconds from 0/m)
  // Keys that a new pool.yaml leaves out.
  const items = yaml.split(/^ {5}(?! )/m).map(item => item.replaceAll(/\s+/g, ' '))
  const textOf = (key: string): string => items.find(item => item.startsWith(`${key} `))!
  for (const key of ['state', 'cache', 'tenancy']) t.match(textOf(key), /[.] /, key)
  t.match(textOf('cache.size'), 'Default: 256M.')
  t.match(textOf('cache.dirty'), 'Default: half of cache.size')
  t.match(textOf('tenancy.locks'), 'Default: advisory.')
  t.match(textOf('tenancy.fence.command[]'), 'Status 0 says')
  t.match(textOf('tenancy.fence.timeout'), 'Default: 60s.')
})
