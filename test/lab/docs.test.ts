// Goal: the worked example of docs/LAB.md runs as it is written. Method: its script, run by bash; what a
// line's comment says that it prints has to come, in this order.
import { mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import t from 'tap'
import { attempt, attemptThinfs, needs } from '../support/mounted-pool.js'

const PROGRAM = resolve(import.meta.dirname, '../../bin/thinfs.js')

t.test('docs/LAB.md: the worked example', needs('/dev/fuse'), async t => {
  const text = readFileSync(resolve(import.meta.dirname, '../../docs/LAB.md'), 'utf8')
  const script = /^## A worked example\n.*?^```sh\n(.*?)^```$/ms.exec(text)![1]!
  const folder = mkdtempSync(join(tmpdir(), 'thinfs-lab-'))
  const [pool, mount] = ['pool', 'mount'].map(name => join(folder, name)) as [string, string]
  mkdirSync(mount)
  t.teardown(async () => {
    await attemptThinfs('umount', pool, '--force')
    rmSync(folder, { recursive: true })
  })
  const shell = `thinfs() { "${process.execPath}" "${PROGRAM}" "$@"; }\n${script}`
  const environment = [`POOL=${pool}`, `MOUNT=${mount}`]
  const { status, stdout, stderr } = await attempt('env', ...environment, 'bash', '-euc', shell)
  t.equal(status, 0, stderr)
  const wanted = [...script.matchAll(/# prints: (.*)$/gm)].map(([, line]) => line!)
  t.ok(wanted.length > 3)
  let rest = stdout
  for (const line of wanted) {
    const at = rest.indexOf(line)
    t.ok(at >= 0, line, { stdout })
    rest = rest.slice(at + line.length)
  }
})
