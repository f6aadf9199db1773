/** Disks that are full: the pool, or the host's disk that its files are on. */
import { rmSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { COMMAND_ACTIONS } from './command-actions.js'
import { changedNothing, END, FILE_ACTIONS } from './file-actions.js'
import { runProgram } from './hands.js'
import type { Action, Operator } from './operator.js'
import { patiently } from './patience.js'

/** Writes of the largest size until a pool must be full. */
const WRITES = 40
const LARGEST = 512

/** What is tried where there is no room. */
const TRIED = [...COMMAND_ACTIONS, ...FILE_ACTIONS].filter(({ name }) =>
  ['create', 'snapshot', 'grow', 'rename', 'write', 'write and flush', 'punch', 'cp'].includes(
    name,
  ),
)

async function fillPool(operator: Operator): Promise<void> {
  const { own, world } = operator
  for (let nr = 0; nr < WRITES && own.length > 0; nr++) {
    const volume = operator.random.of(own)
    const block = operator.random.below(END / LARGEST) * LARGEST
    const tags = operator.tags(volume, block, LARGEST)
    const isFull = await world.doing([volume], async deed => {
      const request = { do: 'write', name: volume.name, block, tags }
      const { errno, written = 0 } = await operator.file(request, deed)
      if (errno === undefined) volume.write(block, tags.slice(0, written), true)
      else if (!changedNothing(errno, deed)) volume.write(block, tags, false)
      return errno !== undefined
    })
    if (isFull) break
  }
}

/** Takes all bytes of the host's disk, tries what there is to try, gives them back. */
async function fillHost(operator: Operator, isKilled: boolean): Promise<void> {
  const { random, world } = operator
  const ballast = join(world.pool.folder, 'ballast')
  await world.killing(() =>
    world.scarcity(async () => {
      await runProgram('dd', ['if=/dev/zero', `of=${ballast}`, 'bs=64K', 'status=none'])
      await runProgram('dd', [
        'if=/dev/zero',
        `of=${ballast}`,
        'bs=512',
        'status=none',
        'oflag=append',
        'conv=notrunc',
      ])
      try {
        for (let nr = random.between(1, 4); nr > 0; nr--) {
          const { name, can, run } = random.of(TRIED)
          operator.say(`- on a full disk: ${name}`)
          if (can?.(operator) ?? true) await run(operator)
        }
        if (isKilled) await world.killEngine()
        if (isKilled) await delay(1000)
      } finally {
        rmSync(ballast)
      }
      await patiently('the pool on a disk with room', recovered(operator))
    }),
  )
}

/** Until the pool takes writes again. */
async function recovered({ world }: Operator): Promise<void> {
  while ((await world.status()).mode !== 'write') await delay(100)
}

/** Those of a pool whose files are on a small disk of their own. */
export const SMALL_DISK_ACTIONS: readonly Action[] = [
  { name: 'full host', weight: 2, run: operator => fillHost(operator, false) },
  { name: 'full host, engine killed', weight: 1, run: operator => fillHost(operator, true) },
]

export const DISK_ACTIONS: readonly Action[] = [{ name: 'full pool', weight: 1, run: fillPool }]
