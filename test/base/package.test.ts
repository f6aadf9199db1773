// Goal: a package of thinfs brings fuse-native in a form that npm only has to unpack.
import { execFile } from 'node:child_process'
import { cpSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { promisify } from 'node:util'
import t from 'tap'

const run = promisify(execFile)
const ROOT = resolve(import.meta.dirname, '../..')

t.test('the bundled fuse-native has its addon and libfuse', async t => {
  const { stdout } = await run('npm', ['pack', '--dry-run', '--json', '--ignore-scripts'], {
    cwd: ROOT,
    maxBuffer: 2 ** 24,
  })
  const [{ files }] = JSON.parse(stdout) as [{ files: { path: string }[] }]
  const paths = new Set(files.map(({ path }) => path))
  const prebuilt = 'node_modules/fuse-native/prebuilds/linux-x64'
  for (const name of ['node.napi.node', 'libfuse.so']) t.ok(paths.has(`${prebuilt}/${name}`), name)
  t.ok(paths.has('bin/thinfs.js'))
  t.ok(paths.has('native-shims/build.mjs'))
  // An addon for the machine that made the package would be taken for one that was built here.
  t.notOk(paths.has('native-shims/build/thinfs.node'))
})

t.test('its copy in the package runs no script', async t => {
  const folder = mkdtempSync(join(tmpdir(), 'thinfs-'))
  t.teardown(() => rmSync(folder, { recursive: true }))
  const file = join(folder, 'package.json')
  cpSync(join(ROOT, 'node_modules/fuse-native/package.json'), file)
  const before = JSON.parse(readFileSync(file, 'utf8'))
  await run(process.execPath, [join(ROOT, 'scripts/strip-fuse-native.mjs'), folder])
  const { scripts: _, ...rest } = before
  t.strictSame(JSON.parse(readFileSync(file, 'utf8')), { ...rest, gypfile: false })
})
