/**
 * `thinfs run`: a command that has a pool as long as it runs, and what becomes of both when either
 * ends, by itself or by a signal. /proc and /sys are the judges of what is left.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { setTimeout as delay } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { done, PROGRAM, refused, run, thinfs } from '../cli/command-line.js'
import { baseOf, leftOf, processesOf, untilGone } from '../support/ephemeral.js'
import { LET_GO } from '../support/mount-namespace.js'
import { needs, readIfThere } from '../support/mounted-pool.js'

const withLoops = needs('/dev/fuse', '/dev/loop-control')

/**
 * With a loop device, an ext4 that is mounted outside of the pool's own folders, and processes on
 * it.
 */
const ATTACHED = `
  mkfs.ext4 -q -F $THINFS_V; loop=$(losetup -f --show $THINFS_V); mkdir $THINFS_MOUNT/../x
  mount $loop $THINFS_MOUNT/../x; cd $THINFS_MOUNT/../x; (trap "" TERM; sleep 1000) &
  echo "$THINFS_MOUNT $loop"; trap "" TERM; wait`

/** Starts `thinfs run` with a script of sh that prints a line when it is ready. */
async function start(
  t: Test,
  script: string,
): Promise<{ command: ChildProcess; line: string; base: string }> {
  const args = [PROGRAM, 'run', '--volume', 'v=64M', '--', 'bash', '-euc', script]
  const command = spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'inherit'] })
  t.teardown(() => command.kill('SIGKILL'))
  const [text] = await once(command.stdout!.setEncoding('utf8'), 'data')
  const [mountPoint, line] = String(text).trim().split(' ')
  return { command, line: line ?? '', base: baseOf(mountPoint!) }
}

t.test('the command has the pool, and its status is the status', needs('/dev/fuse'), async t => {
  const script = `
    echo "$THINFS_MOUNT $THINFS_V $THINFS_WEB_1"
    stat -c %s "$THINFS_V" "$THINFS_WEB_1"
    echo hello > "$THINFS_V"; ${process.execPath} ${PROGRAM} snapshot "$THINFS_MOUNT" v copy
    head -c 5 "$THINFS_MOUNT/copy"; exit 7`
  const args = ['--volume', 'v=1G', '--volume', 'web-1=512', '--', 'bash', '-c', script]
  const { status, stdout, stderr } = await thinfs('run', ...args)
  t.same({ status, stderr }, { status: 7, stderr: '' })
  const [paths, ...lines] = stdout.split('\n')
  const [mount, ...volumes] = paths!.split(' ')
  t.same(volumes, [`${mount}/v`, `${mount}/web-1`])
  t.same(lines.slice(0, 2), ['1073741824', '512'])
  t.equal(lines.at(-1), 'hello')
  t.same(leftOf(baseOf(mount!)), [], 'nothing is left when it returns')
})

t.test('what it cannot run', needs('/dev/fuse'), async t => {
  const asJson = await thinfs('run', '--json', '--', '/none/x', '--json')
  t.equal(asJson.status, 127)
  const message = '/none/x: no such program'
  t.match(JSON.parse(asJson.stderr), { error: { code: 'TOOL_FAILED', errno: 'ENOENT', message } })
  const taken = 'verify: its variable, THINFS_VERIFY, is taken'
  await refused(t, 2, taken, 'run', '--volume', 'verify=1G', '--', 'true')
  await refused(
    t,
    2,
    'a_b: its variable, THINFS_A_B, is taken',
    ...['run', '--volume', 'a-b=1G', '--volume', 'a_b=1G', '--', 'true'],
  )
  await refused(t, 2, /is not a size/, 'run', '--volume', 'v=much', '--', 'true')
})

t.test('without a pool there is a status of its own', async t => {
  const script = `${LET_GO} let_go /none; mount --bind /dev/null /dev/fuse && exec "$0" "$@"`
  const outcome = await run(
    ...(['unshare', '-m', 'sh', '-c', script] as const),
    ...[process.execPath, PROGRAM, 'run', '--', 'true'],
  )
  t.match(outcome, { status: 125, stderr: /^thinfs: .*\/mount: .* \(MOUNT_FAILED\)\n$/ })
})

t.test('signals are passed on', needs('/dev/fuse'), async t => {
  const script = 'trap "exit 5" INT; echo $THINFS_MOUNT; sleep 1000 & wait'
  const { command, base } = await start(t, script)
  command.kill('SIGINT')
  t.same(await once(command, 'exit'), [5, null])
  t.same(leftOf(base), [])
})

t.test('what the command leaves running ends with it', needs('/dev/fuse'), async t => {
  const deaf = `trap "" TERM HUP; exec sleep 1000`
  const script = `echo $THINFS_MOUNT; setsid sh -c '${deaf}' & (cd $THINFS_MOUNT; exec sleep 1000) &
    exec 3< $THINFS_V; kill -9 $$`
  const { command, base } = await start(t, script)
  t.same(await once(command, 'exit'), [128 + 9, null])
  t.same(leftOf(base), [])
})

t.test('SIGKILL of thinfs run leaves nothing', withLoops, async t => {
  const { command, line, base } = await start(t, ATTACHED)
  t.ok(leftOf(base).length > 6, 'there was something')
  command.kill('SIGKILL')
  await once(command, 'exit')
  await untilGone(t, base)
  // The kernel tells so of a file whose mount is gone. The device may be somebody else's by now.
  const backing = readIfThere(`/sys/block/${line.slice('/dev/'.length)}/loop/backing_file`)
  t.notMatch(backing, /^\/v\b/)
})

t.test('SIGKILL at any moment of its start leaves nothing', needs('/dev/fuse'), async t => {
  const moments: Record<string, (base: string) => boolean> = {
    'the keeper has started': () => true,
    'the daemon has started': base => leftOf(base).some(line => line.includes('daemon/main.js')),
  }
  for (const [moment, isThere] of Object.entries(moments)) {
    const args = [PROGRAM, 'run', '--volume', 'v=1G', '--', 'sleep', '1000']
    const command = spawn(process.execPath, args, { stdio: 'ignore' })
    t.teardown(() => command.kill('SIGKILL'))
    const base = await until(() => keeperOf(command)?.base)
    await until(() => isThere(base))
    command.kill('SIGKILL')
    await once(command, 'exit')
    t.comment(moment)
    await untilGone(t, base)
  }
})

t.test('the keeper may be killed as well', needs('/dev/fuse'), async t => {
  const { command, base } = await start(t, 'echo $THINFS_MOUNT; exec sleep 1000')
  const { pid } = await until(() => keeperOf(command))
  process.kill(pid, 'SIGKILL')
  command.kill('SIGTERM')
  t.same(await once(command, 'exit'), [143, null])
  t.same(leftOf(base), [])
})

/** The keeper that a process has started: its arguments tell where the pool is. */
function keeperOf({ pid }: ChildProcess): { pid: number; base: string } | undefined {
  const children = readIfThere(`/proc/${pid}/task/${pid}/children`).split(' ').filter(Boolean)
  return children.map(Number).flatMap(child => {
    const [, base] = /"base":"([^"]+)"/.exec(readIfThere(`/proc/${child}/cmdline`)) ?? []
    return base === undefined ? [] : [{ pid: child, base }]
  })[0]
}

async function until<T>(look: () => T | false | undefined): Promise<T> {
  for (;;) {
    const found = look()
    if (found) return found
    await delay(10)
  }
}

// Without a loop device: all other tests that look at loop devices would wait for this one.
t.test('what hangs is taken away as well', needs('/dev/fuse'), async t => {
  const { command, base } = await start(t, 'cd $THINFS_MOUNT; echo $THINFS_MOUNT; sleep 1000')
  const engine = leftOf(base).find(line => line.includes('engine/main.js'))
  process.kill(Number.parseInt(engine!, 10), 'SIGSTOP')
  command.kill('SIGKILL')
  await untilGone(t, base)
})

t.test('what was left when all were killed goes with the next pool', withLoops, async t => {
  const { command, base } = await start(t, ATTACHED)
  command.kill('SIGSTOP')
  const [keeper, ...others] = [keeperOf(command)!.pid, ...processesOf(base)]
  for (const pid of [keeper, command.pid!, ...others]) process.kill(pid, 'SIGKILL')
  await once(command, 'exit')
  await done(t, 'run', '--', 'true')
  await untilGone(t, base)
})

t.test('help says what the environment has', async t => {
  t.match(await done(t, 'run', '--help'), /THINFS_WEB_1 for web-1/)
})
