// Goal: what thinfs says of a mounted pool is what happened to it, whichever of its processes is
// killed. Method: the kernel's own counts of a loop device on a volume; the command of hooks, which
// has to be told the same as a program that follows the events.
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, readFileSync } from 'node:fs'
import { basename, join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import t from 'tap'
import type { IoCounts } from '../../src/base/index.js'
import { connectDaemon, type Happening } from '../../src/control/index.js'
import type { PoolRates } from '../../src/monitor/index.js'
import type { PoolStatistics } from '../../src/volumes/index.js'
import { PROGRAM } from '../cli/command-line.js'
import { attemptThinfs, MountedPool, needs, run, thinfs, until } from '../support/mounted-pool.js'

/** A follower of the events, in a process of its own. */
function follow(pool: MountedPool) {
  const child = spawn(process.execPath, [PROGRAM, 'events', pool.folder, '--since', '1h'], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  let output = ''
  child.stdout.on('data', chunk => {
    output += chunk
  })
  const lines = () => output.split('\n').slice(0, -1)
  return { child, lines, closed: once(child, 'close') }
}

async function statistics({ folder }: MountedPool): Promise<PoolStatistics> {
  const daemon = await connectDaemon({ file: join(folder, 'pool.yaml'), folder })
  try {
    return await daemon!.statistics()
  } finally {
    daemon!.close()
  }
}

/** The counts of a volume of which something was asked. */
const ofVolume = ({ volumes }: PoolStatistics, wanted: string): IoCounts =>
  volumes.find(({ name }) => name === wanted)!.io!

/** Requests and bytes that the kernel has sent to a disk: Documentation/admin-guide/iostats.rst. */
function kernelCounts(device: string) {
  const path = `/sys/block/${basename(device)}/stat`
  const fields = readFileSync(path, 'utf8').trim().split(/\s+/).map(Number)
  const at = (i: number): number => fields[i]!
  return {
    read: { count: at(0), bytes: 512 * at(2) },
    write: { count: at(4), bytes: 512 * at(6) },
    discard: { count: at(11), bytes: 512 * at(13) },
  }
}

const OPERATIONS = ['read', 'write', 'discard'] as const
type Counts = Record<(typeof OPERATIONS)[number], { count: number; bytes: number }>

/**
 * The counts of a volume and of the disk on it, once nothing is under way: whoever has written to a
 * disk may have udev read it.
 */
async function quiet(pool: MountedPool, volume: string, device: string) {
  for (let last = ''; ; ) {
    const [kernel, all] = [kernelCounts(device), await statistics(pool)]
    const found = { kernel, volume: ofVolume(all, volume), pool: all.io }
    const now = JSON.stringify(found)
    if (now === last) return found
    last = now
    await delay(20)
  }
}

const difference = (before: Counts, after: Counts) =>
  OPERATIONS.map(name => ({
    name,
    count: after[name].count - before[name].count,
    bytes: after[name].bytes - before[name].bytes,
  }))

t.test(
  'counters are those of the kernel, and none is lost with a process',
  needs('/dev/fuse', '/dev/loop-control'),
  async t => {
    const yaml = 'data: { size: 64M }\nvolumes: { web: { size: 16M }, idle: { size: 1M } }'
    const pool = await MountedPool.make(t, yaml)
    const device = await pool.attach('web')
    const write = () =>
      run('dd', 'if=/dev/zero', `of=${device}`, 'bs=64K', 'count=40', 'oflag=direct')
    await write()
    const begun = await quiet(pool, 'web', device)
    await write()
    await run('dd', `if=${device}`, 'of=/dev/null', 'bs=4K', 'count=100', 'iflag=direct')
    await run('blkdiscard', '-o', '0', '-l', '1M', device)
    const done = await quiet(pool, 'web', device)
    const found = difference(begun.volume, done.volume)
    t.strictSame(found, difference(begun.kernel, done.kernel))
    t.match(found, [{}, { count: 40, bytes: 40 * 65_536 }, { bytes: 2 ** 20 }])
    t.ok(found[0]!.count >= 100)
    t.strictSame(difference(begun.pool, done.pool), found, 'the pool has what its volumes have')
    const { volumes } = await statistics(pool)
    t.equal(volumes.find(({ name }) => name === 'idle')!.io, null)
    await run('sync', join(pool.path, 'web'))
    const synced = await statistics(pool)
    t.ok(synced.work.commits > 0)
    t.ok(ofVolume(synced, 'web').flush.count > 0)

    const text = await thinfs('stats', pool.folder)
    t.match(text, /^DEVICE +r\/s +rMB\/s .*\ntest +.*\nidle +0\.00 .*\nweb +/)
    const lines = (await thinfs('stats', pool.folder, '0.05', '2', '--json')).split('\n')
    const [, last] = lines.map(line => JSON.parse(line) as PoolRates)
    t.equal(lines.length, 2)
    t.ok(last!.seconds < 30, 'the second report is of the time since the first')

    const settled = await statistics(pool)
    await pool.killEngine()
    const killed = await statistics(pool)
    t.match(killed, { engineRestarts: 1, since: settled.since })
    t.ok(ofVolume(killed, 'web').write.count >= ofVolume(settled, 'web').write.count)
    await write()
    await thinfs('restart', pool.folder)
    const restarted = await statistics(pool)
    t.equal(restarted.engineRestarts, 2)
    const written = ofVolume(restarted, 'web').write.count - ofVolume(killed, 'web').write.count
    t.equal(written, 40, 'what nobody had asked for is handed over')

    const printed = await thinfs('events', pool.folder, '--since', '1h', '--no-follow')
    t.match(
      printed.split('\n').map(line => JSON.parse(line)),
      [
        { event: 'engine_restarted', detail: /SIGKILL/ },
        { event: 'engine_restarted', detail: 'it was asked to' },
      ],
    )

    process.kill((await pool.status()).mount!.pid!, 'SIGKILL')
    await until(async () => (await pool.status().catch(() => null))?.mount?.pid === null)
    t.strictSame(ofVolume(await statistics(pool), 'web').write, ofVolume(restarted, 'web').write)
    await pool.mount()
    const taken = await statistics(pool)
    t.match(taken, { engineRestarts: 3, since: settled.since })
    t.strictSame(ofVolume(taken, 'web').write, ofVolume(restarted, 'web').write)
    await pool.detach('web')
    await pool.close(t)
  },
)

/** Runs `thinfs top` on a terminal that becomes narrower, and presses keys. */
const ON_A_TERMINAL = `
import fcntl, os, pty, struct, sys, termios
def size(columns): fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack('HHHH', 24, columns, 0, 0))
pid, fd = pty.fork()
if pid == 0: os.execv(sys.argv[1], sys.argv[1:])
size(100)
seen = b''
def until(wanted):
    global seen
    while wanted not in seen:
        seen += os.read(fd, 65536)
    seen = seen[seen.index(wanted) + len(wanted):]
until(b'VOLUME')
until(b'[b bytes]')
os.write(fd, b'n')
until(b'[n name]')
size(40)
until(b'q quit   sort: [n name]  r reads  w writ' + bytes([27]) + b'[H')
os.write(fd, b'q')
until(bytes([27]) + b'[?1049l')
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
`

/** Runs `thinfs top`, stops the processes of the pool, and wants to go. */
const WITH_A_STOPPED_POOL = `
import fcntl, os, pty, signal, struct, sys, termios, time
pids = [int(pid) for pid in sys.argv[1].split(',')]
pid, fd = pty.fork()
if pid == 0: os.execv(sys.argv[2], sys.argv[2:])
fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack('HHHH', 24, 100, 0, 0))
seen = b''
while b'VOLUME' not in seen: seen += os.read(fd, 65536)
for one in pids: os.kill(one, signal.SIGSTOP)
# Two looks later it waits for an answer.
time.sleep(0.5)
os.write(fd, b'q')
signal.signal(signal.SIGALRM, lambda *_: os.kill(pid, signal.SIGKILL))
signal.alarm(20)
while True:
    try:
        if os.read(fd, 65536) == b'': break
    except OSError: break
status = os.waitpid(pid, 0)[1]
for one in pids: os.kill(one, signal.SIGCONT)
print(os.waitstatus_to_exitcode(status))
`

t.test('top: on a terminal, and into a pipe', needs('/dev/fuse'), async t => {
  const yaml = 'data: { size: 16M }\nvolumes: { web: { size: 8M }, db: { size: 1M } }'
  const pool = await MountedPool.make(t, yaml)
  const args = [PROGRAM, 'top', pool.folder, '--delay', '0.1']
  t.equal(await run('python3', '-c', ON_A_TERMINAL, process.execPath, ...args), '0')
  const stopped = ['-c', WITH_A_STOPPED_POOL, pool.processes().join()]
  t.equal(
    await run('python3', ...stopped, process.execPath, ...args),
    '0',
    'q ends it all the same',
  )
  t.match(await run(process.execPath, ...args), /^test: mode write, .*\nVOLUME .*\ndb .*\nweb /s)
  const lines = (await run(process.execPath, ...args, '-n', '2', '--json')).split('\n')
  t.match(
    lines.map(line => JSON.parse(line)),
    [{ name: 'test' }, { name: 'test', volumes: [{ name: 'db' }, { name: 'web' }] }],
  )
  await pool.close(t)
})

t.test('events: whoever follows hears what hooks hear', needs('/dev/fuse'), async t => {
  const yaml = `data: { size: 16M }
volumes: { fill: { size: 1G } }
on_full: error
hooks: echo "$THINFS_EVENT $THINFS_MODE $THINFS_DATA_USED" >> "$(dirname "$THINFS_POOL")/told"`
  const pool = await MountedPool.make(t, yaml)
  const told = join(pool.folder, 'told')
  const lines = () => (existsSync(told) ? readFileSync(told, 'utf8').split('\n').slice(0, -1) : [])
  const { child, lines: heard, closed } = follow(pool)
  t.teardown(() => child.kill())
  await pool.sh('! dd if=/dev/zero of=fill bs=64K count=400 conv=notrunc status=none')
  await until(() => lines().length >= 2)
  await pool.sh('fallocate -p -o 0 -l 8M fill; sync fill')
  await until(() => lines().length === 3 && heard().length === 3)
  await pool.umount()
  t.same(await closed, [0, null], 'it ends with the mount')
  const parsed = heard().map(line => JSON.parse(line) as Happening)
  t.equal(parsed.pop()!.event, 'unmounted')
  t.same(
    parsed.map(({ event, mode, dataUsed }) => `${event} ${mode} ${dataUsed}`),
    lines(),
  )
  t.match(lines(), [/^low_water_data write/, /^full_data out_of_data_space/, /^mode write/])
  t.match(await attemptThinfs('events', pool.folder), { status: 1, stderr: /\(NOT_MOUNTED\)/ })
  t.match(await attemptThinfs('stats', pool.folder), { status: 1, stderr: /\(NOT_MOUNTED\)/ })
  await pool.close(t)
})
