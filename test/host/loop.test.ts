// Goal: nobody waits for a losetup that waits for a device that hangs, which no signal ends.
// Method: in its place a program that sleeps, and in ours a kill(2) that ends nothing.
import { execFile } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import t from 'tap'

const LOOP = new URL('../../src/host/loop.ts', import.meta.url).pathname
/** Lists loop devices in a process of its own, which has to end, too. */
const LIST = `import { ChildProcess } from 'node:child_process'
ChildProcess.prototype.kill = () => true
const { listLoops } = await import(${JSON.stringify(LOOP)})
console.log(Array.isArray(await listLoops()))`

t.test('a losetup that never ends is not waited for', async t => {
  const folder = mkdtempSync(join(tmpdir(), 'thinfs-'))
  const pidFile = join(folder, 'pid')
  t.teardown(async () => {
    await promisify(execFile)('sh', ['-c', `kill $(cat ${pidFile})`]).catch(() => {})
    rmSync(folder, { recursive: true, force: true })
  })
  const program = `#!/bin/sh\necho $$ > ${pidFile}\nexec sleep 1000\n`
  writeFileSync(join(folder, 'losetup'), program, { mode: 0o755 })
  const { stdout } = await promisify(execFile)(
    process.execPath,
    ['--import=tsx', '--input-type=module', '--eval', LIST],
    { env: { ...process.env, PATH: `${folder}:${process.env.PATH}` }, timeout: 120_000 },
  )
  t.equal(stdout, 'true\n')
})
