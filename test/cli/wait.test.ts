/** Commands on a pool that another one has: they wait for their turn, as LVM's and ZFS's do. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import t, { type Test } from 'tap'
import { MountedPool, needs, until } from '../support/mounted-pool.js'
import { done, PROGRAM, refused, run, thinfs } from './command-line.js'

/** Seconds, which nothing takes: a waiter of these ends when it has had its turn. */
const LONG = ['--wait', '50']

/** A command that has the pool until it is killed: it reads a dump that does not come. */
async function holder(t: Test, pool: string): Promise<{ pid: number; end(): Promise<void> }> {
  const { ino } = statSync(join(pool, 'metadata'))
  const args = [PROGRAM, 'restore', pool, '--force']
  const child = spawn(process.execPath, args, { stdio: ['pipe', 'ignore', 'ignore'] })
  const exit = once(child, 'exit')
  const end = async (): Promise<void> => {
    child.kill('SIGKILL')
    await exit
  }
  t.teardown(end)
  // Source: proc(5), /proc/locks.
  const isLocked = new RegExp(`OFDLCK .* [\\da-f]+:[\\da-f]+:${ino} `)
  await until(() => isLocked.test(readFileSync('/proc/locks', 'latin1')))
  return { pid: child.pid!, end }
}

t.test('eight commands at once all have their turn', async t => {
  const pool = join(t.testdir({}), 'pool')
  await done(t, 'init', pool, '--data-size', '1G')
  const names = Array.from({ length: 8 }, (_, i) => `v${i}`)
  const outcomes = await Promise.all(
    names.map(name => thinfs('create', pool, name, '--size', '1G', ...LONG)),
  )
  for (const outcome of outcomes) t.match(outcome, { status: 0 })
  const listed: { name: string }[] = JSON.parse(await done(t, 'list', pool, '--json'))
  t.strictSame(
    listed.map(({ name }) => name),
    names,
  )
  t.match(await run('thin_check', join(pool, 'metadata')), { status: 0 })
})

t.test('who has the pool is named, and waited for', async t => {
  const pool = join(t.testdir({}), 'pool')
  await done(t, 'init', pool, '--data-size', '1G')
  const { pid, end } = await holder(t, pool)
  const who = `${join(pool, 'pool.yaml')} is in use by process ${pid} (thinfs restore)`
  await refused(t, 1, who, 'create', pool, 'a', '--size', '1G', '--wait', '0')
  await refused(t, 1, who, 'mount', pool, t.testdirName, '--wait', '0')
  await refused(t, 2, /'-1' is invalid\. A number of .* at all; see /, 'list', pool, '--wait', '-1')
  const waiter = spawn(process.execPath, [PROGRAM, 'list', pool, ...LONG], {
    stdio: ['ignore', 'ignore', 'pipe'],
  })
  t.teardown(() => waiter.kill('SIGKILL'))
  const exit = once(waiter, 'exit')
  t.strictSame(await once(createInterface(waiter.stderr!), 'line'), [`thinfs: waiting: ${who}`])
  await end()
  t.strictSame(await exit, [0, null])
})

t.test('a mount waits as well, and a command goes to it', needs('/dev/fuse'), async t => {
  const pool = await MountedPool.prepare(t, 'data: { size: 64M }\nmetadata: { size: 4M }', file =>
    done(t, 'init', file),
  )
  const { end } = await holder(t, pool.folder)
  const all = Promise.all([
    thinfs('mount', pool.folder, pool.path, ...LONG),
    ...['a', 'b', 'c'].map(name => thinfs('create', pool.folder, name, '--size', '1M', ...LONG)),
  ])
  await end()
  for (const outcome of await all) t.match(outcome, { status: 0 })
  t.equal(await pool.sh('echo *'), 'a b c')
  await pool.close(t)
})
