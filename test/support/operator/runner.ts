/** Two operators at once on one pool, each with a schedule that a seed decides. */

import type { MountedPool } from '../mounted-pool.js'
import { Random } from '../random.js'
import { COMMAND_ACTIONS } from './command-actions.js'
import { DISK_ACTIONS, SMALL_DISK_ACTIONS } from './disk-actions.js'
import { FILE_ACTIONS } from './file-actions.js'
import { KILL_ACTIONS } from './kill-actions.js'
import { MISTAKE_ACTIONS } from './mistake-actions.js'
import { type Action, Operator } from './operator.js'
import { World } from './world.js'

/** Actions of one operator between two quiet points. */
const BETWEEN_QUIET_POINTS = 12
/** Lines of what was done before something went wrong. */
const LAST_LINES = 60

/**
 * Names of actions to leave out, with commas between, while what they find is being looked into.
 */
const LEFT_OUT = new Set((process.env.THINFS_OPERATOR_WITHOUT ?? '').split(/, */))
/** The other way round: how often more than usual those are done. */
const OFTEN = new Set((process.env.THINFS_OPERATOR_OFTEN ?? '').split(/, */))
const OFTEN_FACTOR = 40

const ACTIONS: readonly Action[] = [
  ...COMMAND_ACTIONS,
  ...FILE_ACTIONS,
  ...KILL_ACTIONS,
  ...MISTAKE_ACTIONS,
  ...DISK_ACTIONS,
  ...SMALL_DISK_ACTIONS,
]
  .filter(({ name }) => !LEFT_OUT.has(name))
  .map(action =>
    OFTEN.has(action.name) ? { ...action, weight: action.weight * OFTEN_FACTOR } : action,
  )

/** Something went wrong, and what was done before. */
export class OperatorError extends Error {
  readonly story: readonly string[]

  constructor(message: string, story: readonly string[], cause: unknown) {
    super(message, { cause })
    this.story = story
  }
}

/**
 * Runs two operators on a mounted pool, whose folder is a small disk of its own.
 * @param steps actions of each
 * @returns what was done
 * @throws OperatorError at the first thing that is not as it has to be, with what came before
 */
export async function operate(
  pool: MountedPool,
  seed: number,
  steps: number,
): Promise<World['counts']> {
  const world = new World(pool)
  const operators = ['a', 'b'].map(id => new Operator(id, world, new Random(seed)))
  let failure: unknown = null
  try {
    await Promise.all(
      operators.map(async (operator, index) => {
        for (let step = 1; step <= steps && failure === null; step++) {
          // Each step has a sequence of its own: a race changes this one, and not all that follow.
          operator.random = new Random(Math.imul(seed, 0x9e3779b1) ^ (2 * step + index))
          await take(operator, step).catch((err: unknown) => {
            failure ??= err
          })
        }
      }),
    )
    if (failure === null) await world.quietPoint({ unmount: true })
  } catch (err) {
    failure = err
  } finally {
    for (const operator of operators) operator.close()
    world.close()
  }
  if (failure !== null) {
    const story = [...world.trace.slice(-LAST_LINES), ...world.logged().slice(-10)]
    throw new OperatorError(`seed ${seed}: ${(failure as Error).message}`, story, failure)
  }
  return world.counts
}

/** One action, and after some of them a quiet point. */
async function take(operator: Operator, step: number): Promise<void> {
  const { gate, counts } = operator.world
  const action = choose(operator)
  const run = async (): Promise<void> => {
    counts.actions++
    operator.say(`--- ${step}: ${action.name}`)
    await action.run(operator)
  }
  switch (action.manner) {
    case 'alone':
      await gate.locked(() => gate.empty().then(run))
      break
    case 'outage':
      await gate.locked(() => operator.world.outage(run))
      break
    default:
      await gate.shared(run)
  }
  if (operator.id === 'a' && step % BETWEEN_QUIET_POINTS === 0) {
    operator.say('--- quiet point')
    const unmount = operator.random.chance(0.5)
    await gate.locked(() => gate.empty().then(() => operator.world.quietPoint({ unmount })))
  }
}

function choose(operator: Operator): Action {
  const possible = ACTIONS.filter(({ can }) => can?.(operator) ?? true)
  let left = operator.random.next() * possible.reduce((sum, { weight }) => sum + weight, 0)
  for (const action of possible) {
    left -= action.weight
    if (left < 0) return action
  }
  return possible.at(-1)!
}
