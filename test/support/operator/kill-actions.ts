/** What ends or stops the processes of a pool, and mounting it anew. */
import { setTimeout as delay } from 'node:timers/promises'
import { nextEngine, runningEngine } from '../engine-killer.js'
import { runProgram } from './hands.js'
import type { Action, Operator } from './operator.js'
import { patiently } from './patience.js'

/** An engine that is stopped for so long is not taken for dead. */
const STOP_MS = 1000

/** Without the daemon, who would start another engine: the next daemon takes over. */
async function killDaemon({ random, world }: Operator): Promise<void> {
  await world.killing(async () => {
    const pid = world.daemonPid
    if (pid === 0) return
    world.kill(pid)
    await delay(random.below(500))
    await world.mount()
  })
}

/** Kills both, in one order or the other, and mounts again. */
export async function killBoth({ random, world }: Operator): Promise<void> {
  const { daemonPid } = world
  const engines = (): void => {
    for (const pid of world.enginePids) world.kill(pid)
  }
  // A daemon that lives longer than its engine may have started another.
  if (random.chance(0.5)) engines()
  world.kill(daemonPid)
  engines()
  await world.gate.empty()
  await runProgram('umount', ['--lazy', world.pool.path])
  engines()
  await patiently('the death of both', world.gone())
}

/** Unmounts, when nobody is in the way. @returns whether it did */
export async function umount(operator: Operator): Promise<boolean> {
  const { world } = operator
  const { status } = await operator.command(['umount', world.pool.folder])
  // Nobody else is inside of the mount, but he may have been before.
  if (status !== 0) await world.gate.empty()
  else world.model.flushed()
  return status === 0
}

export const KILL_ACTIONS: readonly Action[] = [
  {
    name: 'kill the engine',
    weight: 3,
    run: ({ world }) => world.killing(() => world.killEngine()),
  },
  {
    name: 'stop the engine',
    weight: 1,
    run: ({ world }) =>
      world.killing(async () => {
        const engine = runningEngine(world.pool)
        if (engine === 0) return
        world.kill(engine, 'SIGSTOP')
        await delay(STOP_MS)
        world.kill(engine, 'SIGCONT')
      }),
  },
  { name: 'kill the daemon', weight: 1, run: killDaemon },
  {
    name: 'kill both',
    weight: 2,
    manner: 'outage',
    async run(operator) {
      await killBoth(operator)
      await operator.world.mount()
    },
  },
  {
    name: 'restart',
    weight: 1,
    async run(operator) {
      await operator.world.killing(async () => {
        await operator.change({ args: ['restart', operator.poolArg] })
        await nextEngine(operator.world.pool)
      })
    },
  },
  {
    name: 'unmount and mount',
    weight: 2,
    manner: 'outage',
    async run(operator) {
      if (await umount(operator)) {
        await operator.world.gate.empty()
        await operator.world.mount()
      }
    },
  },
  {
    name: 'unmount while in use',
    weight: 1,
    async run(operator) {
      const { own, random, world } = operator
      if (own.length === 0) return
      const volume = random.of(own)
      await world.doing([volume], async deed => {
        const { name } = volume
        const { errno } = await operator.file({ do: 'hold', name }, deed)
        if (errno !== undefined) return
        try {
          if (!deed.broken) await operator.mustBeRefused(['umount', world.pool.folder], ['EBUSY'])
        } finally {
          await operator.file({ do: 'release', name }, deed)
        }
      })
    },
  },
  {
    name: 'mount twice',
    weight: 1,
    async run(operator) {
      const { folder, path, plain } = operator.world.pool
      const place = operator.random.of([path, plain])
      await operator.world.killing(() =>
        operator.mustBeRefused(['mount', folder, place], ['EBUSY']),
      )
    },
  },
]
