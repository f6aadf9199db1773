/**
 * Ends engines of a mounted pool at moments that a seed decides, under whatever load there is.
 *
 * All moments are as they come: in the middle of a batch, of a commit, of the next engine's start.
 */
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import type { MemoryCgroup } from './memory-cgroup.js'
import { type MountedPool, readIfThere, run } from './mounted-pool.js'

const SHORTEST_MS = 50
const LONGEST_MS = 1500

/** The same numbers in [0, 1) for the same seed. */
export function* randomNumbers(seed: number): Generator<number, never> {
  for (let state = seed | 0; ; ) {
    // mulberry32
    state = (state + 0x6d2b79f5) | 0
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state)
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed
    yield ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
  }
}

/** The engine that runs now, 0 between two of them; asks the kernel, not the pool. */
export function runningEngine(pool: MountedPool): number {
  const pid = daemonOf(pool)
  const children = readIfThere(`/proc/${pid}/task/${pid}/children`).split(' ')
  return Number(children.find(child => isEngine(child)) ?? 0)
}

/** The daemon's process id; 0 when there is none, or it is just saying so. */
export function daemonOf(pool: MountedPool): number {
  const text = readIfThere(join(pool.folder, 'daemon.json'))
  return text.endsWith('\n') ? JSON.parse(text).pid : 0
}

const isEngine = (pid: string): boolean =>
  pid !== '' && readIfThere(`/proc/${pid}/cmdline`).includes('engine/main.js')

/**
 * Until there is an engine.
 * @returns its process id
 * @throws Error when there is none any more
 */
export async function nextEngine(pool: MountedPool, previous = 0): Promise<number> {
  for (;;) {
    const pid = runningEngine(pool)
    if (pid !== 0 && pid !== previous) return pid
    const failed = pid === 0 && pool.log().find(({ msg }) => msg === 'engine failed')
    if (failed) throw new Error(JSON.stringify(failed))
    await delay(1)
  }
}

/** Until the engine has taken the mount over. */
export async function serving(pool: MountedPool, pid: number): Promise<void> {
  const serves = (): boolean =>
    pool.log().some(({ msg, engine }) => msg === 'engine serves' && engine === pid)
  while (!serves()) await delay(10)
}

/** Kills as many engines as are wanted; the one after them has served when it resolves. */
export async function killEngines(pool: MountedPool, nr: number, seed: number): Promise<void> {
  const random = randomNumbers(seed)
  let engine = 0
  for (let death = 1; death <= nr; death++) {
    engine = await nextEngine(pool, engine)
    // Most moments are short, so that some engines do not live to serve.
    await delay(SHORTEST_MS + random.next().value ** 2 * (LONGEST_MS - SHORTEST_MS))
    process.kill(engine, 'SIGKILL')
  }
  await serving(pool, await nextEngine(pool, engine))
}

/**
 * Kills as many engines as are wanted, each after it has served `use`; the one after them serves
 * when it resolves.
 */
export async function killServingEngines(
  pool: MountedPool,
  nr: number,
  use: () => Promise<unknown>,
): Promise<void> {
  let engine = 0
  for (let death = 1; death <= nr; death++) {
    engine = await nextEngine(pool, engine)
    await serving(pool, engine)
    await use()
    process.kill(engine, 'SIGKILL')
  }
  await serving(pool, await nextEngine(pool, engine))
}

/**
 * Makes the kernel kill engines for want of memory, in a group that a neighbour fills.
 * @param group with room for less than what the neighbour takes
 */
export async function starveEngines(
  pool: MountedPool,
  group: MemoryCgroup,
  nr: number,
): Promise<void> {
  let engine = 0
  for (let death = 1; death <= nr; death++) {
    engine = await nextEngine(pool, engine)
    await serving(pool, engine)
    // Of the two it is to be the engine.
    writeFileSync(`/proc/${engine}/oom_score_adj`, '1000')
    group.add(engine)
    // The neighbour is the next to be killed.
    await run('sh', '-c', `${group.join}; python3 -c "b'x' * ${4 * group.limit}" || true`)
    while (runningEngine(pool) === engine) await delay(1)
  }
  await serving(pool, await nextEngine(pool, engine))
}

/** Stops engines, and has them go on after up to two seconds. */
export async function stopEngines(pool: MountedPool, nr: number, seed: number): Promise<void> {
  const random = randomNumbers(seed)
  const engine = await nextEngine(pool)
  for (let stop = 1; stop <= nr; stop++) {
    await delay(SHORTEST_MS + random.next().value * 500)
    process.kill(engine, 'SIGSTOP')
    await delay(500 + random.next().value * 1500)
    process.kill(engine, 'SIGCONT')
  }
}

/** Milliseconds from death to service, for every engine that lived to serve. */
export function takeovers(pool: MountedPool): number[] {
  const found: number[] = []
  let died: number | null = null
  for (const { msg, time } of pool.log()) {
    if (msg === 'engine died, starting another') died = Number(time)
    if (msg !== 'engine serves' || died === null) continue
    found.push(Number(time) - died)
    died = null
  }
  return found
}
