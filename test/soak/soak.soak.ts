// Goal: under pressure for as long as wanted, nothing hangs, nothing grows, no byte is wrong.
// Method: THINFS_SOAK seconds are shared out to a storm of flushes on ext4 over a loop device,
// volumes that come and go, and mounts that come and go; what the processes hold is sampled all the
// time. Figures go to the file THINFS_FIGURES.
import { mkdirSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { runningEngine } from '../support/engine-killer.js'
import { load, repeat, runLoad, STOP, type Tree } from '../support/load.js'
import { MemoryCgroup } from '../support/memory-cgroup.js'
import { MountedPool, needs, run, sh } from '../support/mounted-pool.js'
import { figure } from '../support/tally.js'

const SECONDS = Number(process.env.THINFS_SOAK ?? 300)
const MIB = 2 ** 20
const CACHE = 256 * MIB
const WRITERS = 16
/**
 * Bytes that a process may hold more at the end of a phase than the fitted line had it hold after
 * the first third: what it takes is given back by the garbage collector in steps of up to 17 MiB,
 * the size of one set of request slots, and a line through a few such steps may rise by one of
 * them.
 */
const MAX_GROWTH = 32 * MIB

interface Sample {
  /** Milliseconds. */
  time: number
  /** Bytes of anonymous memory: the page cache's share is not the process's own. */
  memory: number
  descriptors: number
}

function sample(pid: number): Sample {
  const status = readFileSync(`/proc/${pid}/status`, 'utf8')
  return {
    time: performance.now(),
    memory: Number(/^RssAnon:\s*(\d+) kB$/m.exec(status)![1]) * 1024,
    descriptors: readdirSync(`/proc/${pid}/fd`).length,
  }
}

/** Samples a process once a second. */
class Watch {
  readonly #name: string
  readonly #samples: Sample[] = []
  readonly #timer: NodeJS.Timeout

  constructor(name: string, pid: number) {
    this.#name = name
    this.#timer = setInterval(() => this.#samples.push(sample(pid)), 1000)
  }

  /** Compares what it holds at the end with what it held after a third of the time. */
  end(t: Test): void {
    clearInterval(this.#timer)
    const rest = this.#samples.slice(Math.floor(this.#samples.length / 3))
    const { slope, first, last } = line(rest)
    const seconds = (last.time - first.time) / 1000
    const growth = slope * (last.time - first.time)
    const rate = seconds < 60 ? '' : `, ${mib((growth / seconds) * 3600)} MiB an hour`
    figure(
      t,
      `${this.#name}: ${mib(last.memory)} MiB, grew by ${mib(growth)} MiB in ${Math.round(seconds)} s` +
        `${rate}; descriptors ${first.descriptors} to ${last.descriptors}`,
    )
    t.ok(growth < MAX_GROWTH, `${this.#name} does not grow: ${mib(growth)} MiB`)
    t.ok(last.descriptors - first.descriptors <= 2, `${this.#name} leaks no descriptor`)
  }
}

const mib = (bytes: number): string => (bytes / MIB).toFixed(1)

/** The line of least squares through the memory of samples: bytes a millisecond. */
function line(samples: readonly Sample[]) {
  const mean = (of: (sample: Sample) => number): number =>
    samples.reduce((sum, one) => sum + of(one), 0) / samples.length
  const time = mean(one => one.time)
  const memory = mean(one => one.memory)
  const slope =
    mean(one => (one.time - time) * (one.memory - memory)) / mean(one => (one.time - time) ** 2)
  return { slope, first: samples[0]!, last: samples.at(-1)! }
}

function watches(pool: MountedPool): { end(t: Test): void } {
  const daemon: { pid: number } = JSON.parse(readFileSync(join(pool.folder, 'daemon.json'), 'utf8'))
  const all = [new Watch('engine', runningEngine(pool)), new Watch('daemon', daemon.pid)]
  return {
    end(t) {
      for (const watch of all) watch.end(t)
    },
  }
}

t.test(
  `ext4 with ${WRITERS} writers, flushes and little memory`,
  needs('/dev/fuse', '/dev/loop-control'),
  async t => {
    const seconds = SECONDS * 0.6
    const pool = await MountedPool.make(t, 'data: { size: 2G }\nvolumes: { a: { size: 1G } }')
    const at = join(pool.base, 'fs')
    const [tree, state] = [join(at, 'tree'), join(pool.base, 'state')]
    mkdirSync(at)
    const device = await pool.attach('a')
    await run('mkfs.ext4', '-q', device)
    await run('mount', device, at)
    // The page caches of the filesystem and of the data file: each has to wait for the other's.
    const clients = new MemoryCgroup(t, 'clients', CACHE)
    const servers = new MemoryCgroup(t, 'servers', CACHE)
    servers.add(runningEngine(pool))
    const watch = watches(pool)
    const writers = await load<Tree>(
      pool,
      'tree',
      'run',
      tree,
      1,
      WRITERS,
      STOP,
      state,
      clients.folder,
    )
    const storm = repeat(pool, at, `${clients.join}; sync -f .; fstrim .`)
    await Promise.race([delay(seconds * 1000), writers.ended, storm.ended])
    watch.end(t)
    const syncs = await storm.stop()
    const { steps, bytes, longestFlushMs } = await writers.stop()
    figure(
      t,
      `storm: ${Math.round(seconds)} s, ${steps} file changes (${Math.round(steps / seconds)} a second), ` +
        `${syncs} syncs with fstrim, longest fsync ${longestFlushMs} ms`,
    )
    t.equal(clients.nrKilled + servers.nrKilled, 0, 'there was memory enough')
    await run('umount', at)
    t.ok(await sh(pool.base, `e2fsck -fn ${device} 2>&1`), 'e2fsck -fn')
    await run('mount', device, at)
    const verified = await runLoad<Tree>('tree', 'verify', tree, state)
    figure(
      t,
      `storm: ${bytes + verified.bytes} bytes verified in ${verified.steps} files and on the way`,
    )
    await run('umount', at)
    await pool.detach('a')
    await pool.close(t)
  },
)

t.test('volumes that come and go', needs('/dev/fuse'), async t => {
  const seconds = SECONDS * 0.2
  const pool = await MountedPool.make(t, 'data: { size: 256M }')
  const watch = watches(pool)
  const { rounds, seconds: took } = await runLoad<{ rounds: number; seconds: number }>(
    'churn',
    pool.path,
    '10000',
    String(seconds),
  )
  watch.end(t)
  figure(t, `churn: ${rounds} volumes made, written to and removed in ${took} s`)
  t.ok(rounds > 0)
  await pool.close(t)
})

t.test('mounts that come and go', needs('/dev/fuse'), async t => {
  const end = performance.now() + SECONDS * 0.2 * 1000
  const pool = await MountedPool.make(t, 'data: { size: 256M }\nvolumes: { a: { size: 64M } }')
  const held = async () => ({
    descriptors: await sh('/', 'cut -f1 /proc/sys/fs/file-nr'),
    connections: (await sh('/', 'ls /sys/fs/fuse/connections')).split('\n').length,
  })
  const before = await held()
  let cycles = 0
  for (; cycles < 1000 && performance.now() < end; cycles++) {
    await pool.sh(`echo ${cycles} | dd of=a bs=64K seek=${cycles} conv=notrunc status=none`)
    await pool.remount()
  }
  const after = await held()
  figure(
    t,
    `mounts: ${cycles} cycles, open files of the machine ${before.descriptors} to ${after.descriptors}, ` +
      `FUSE connections ${before.connections} to ${after.connections}`,
  )
  t.equal(pool.processes().length, 2, 'one daemon, one engine')
  await pool.close(t)
})
