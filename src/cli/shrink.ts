import { ThinfsError } from '../base/index.js'
import { exactSize, formatSize, formatSizes, type PoolConfig, parseSize } from '../config/index.js'
import type { Change, PoolAdmin, PoolStatus } from '../volumes/index.js'
import { type Output, poolCommand, print } from './command.js'
import { configOf, withPool } from './pool.js'
import { lookingEvery, PERIOD, Progress } from './progress.js'

interface Options extends Output {
  data: string
  dryRun?: true
}

/** Milliseconds between looks at whether it waits, where no terminal shows how far it is. */
const LOOK_PERIOD = 5000

export const shrink = poolCommand(
  'shrink',
  `Make the data of a pool smaller, mounted or not, and say so in its pool.yaml. What is in use past the
new end moves below it, while the volumes are used; interrupted or killed, the same command goes on.`,
  'thinfs shrink /srv/pool --data 20G',
)
  .requiredOption(
    '--data <size>',
    'what all volumes together can hold, as in 20G; -50G is relative',
  )
  .option('--dry-run', 'move nothing; say how much would be moved')
  .action(async (pool: string, options: Options) => {
    const { changePoolYaml, mustTake } = await import('../volumes/index.js')
    const config = await configOf(pool, options.dryRun)
    const access = options.dryRun ? 'read' : 'write'
    const { before, after, moved } = await withPool(pool, access, async (admin, { file }) => {
      const before = sizeOf(await admin.status())
      const wanted = wantedOf(options.data, before)
      const plan = await admin.shrink({ data: wanted, dryRun: true })
      if (options.dryRun) return { before, after: plan.data, moved: plan.moved }
      mustTake(file, changeOf(config, plan.data))
      const { data, moved } = await showing(admin, plan.moved, () => admin.shrink({ data: wanted }))
      await changePoolYaml(file, changeOf(config, data))
      return { before, after: data, moved }
    })
    const [has, had] = formatSizes(after, before)
    const text = options.dryRun
      ? `data: ${has}, it is ${had}; ${formatSize(moved)} would be moved`
      : `data: ${has}, it was ${had}; ${formatSize(moved)} moved`
    print(options, { before: { data: before }, after: { data: after }, moved }, text)
  })

const sizeOf = ({ data, dataBlockSize }: PoolStatus): number => data.blocks * dataBlockSize

/** @param has what a relative size counts from */
function wantedOf(text: string, has: number): number {
  let size: number
  try {
    size = text.startsWith('-') ? has - parseSize(text.slice(1)) : parseSize(text)
  } catch (err) {
    throw new ThinfsError('BAD_ARGUMENT', `--data ${(err as Error).message}`, { cause: err })
  }
  if (size > 0) return size
  const what = `--data ${text}: the pool has ${formatSize(has)}, nothing would be left`
  throw new ThinfsError('BAD_ARGUMENT', what)
}

/** Calls `act`, and shows on a terminal how far it is, and anywhere what it waits for. */
async function showing<T>(admin: PoolAdmin, size: number, act: () => Promise<T>): Promise<T> {
  const progress = new Progress('moving', size)
  let waited = false
  const look = async (ended: AbortSignal): Promise<void> => {
    const { shrink } = await admin.status()
    if (!shrink || ended.aborted) return
    const done = Math.max(0, size - shrink.left)
    progress.show(done, done)
    if (shrink.waits && !waited) {
      process.stderr.write(
        'thinfs: this waits until thinfs send, delta or map, which read the pool, has ended\n',
      )
    }
    waited = shrink.waits
  }
  try {
    return await lookingEvery(process.stderr.isTTY ? PERIOD : LOOK_PERIOD, look, act)
  } finally {
    progress.end()
  }
}

/** The change that keeps the size in pool.yaml true, where it has one. */
function changeOf(config: PoolConfig, size: number): Change {
  const says = config.data.size !== null && config.data.size !== size
  return {
    settings: says ? [[['data', 'size'], exactSize(size)]] : [],
    apply: now => ({ ...now, ...(says && { data: { ...now.data, size } }) }),
  }
}
