import { type Output, poolCommand, print } from './command.js'
import { mustBeWanted, YES_OPTION } from './confirm.js'
import { namingHolders, withPool } from './pool.js'

interface Options extends Output {
  /** A name; false for --no-keep. */
  keep?: string | false
  yes?: true
}

export const rollback = poolCommand(
  'rollback',
  'Give a volume the content of a snapshot again, at once.',
  'thinfs rollback /srv/pool web web-before-upgrade',
)
  .argument('<VOLUME>', 'which nobody has open')
  .argument('<SNAPSHOT>', 'any volume of the pool; it stays as it is')
  .option('--keep <name>', 'name for what the volume was (default: VOLUME@before-rollback-TIME)')
  .option('--no-keep', 'remove what the volume was; asks')
  .option(...YES_OPTION)
  .addHelpText(
    'after',
    `
The volume is replaced by a new snapshot of SNAPSHOT, which has its name, mode and owner and another
device id. What it was stays under a name of its own, so that a rollback to that undoes this one; as
with zfs rollback, and other than with lvconvert --merge, SNAPSHOT stays. Snapshots of what the volume
was stay, too: newer ones need not be removed first.`,
  )
  .action(async (pool: string, name: string, snapshot: string, options: Options) => {
    const { keep, yes, ...output } = options
    if (keep === false) {
      const question = async (): Promise<string> =>
        `Give ${name} the content of ${snapshot}, and keep nothing of what it is now?`
      await mustBeWanted('a rollback that keeps nothing', { yes, question })
    }
    const before = keep === false ? undefined : (keep ?? `${name}@before-rollback-${now()}`)
    const request = { name, snapshot, ...(before !== undefined && { keep: before }) }
    const volume = await withPool(pool, 'write', (admin, { file }) =>
      namingHolders(admin, file, [name], () => admin.rollback(request)),
    )
    const kept = before === undefined ? '' : `; ${before} is what it was`
    print(output, { ...volume, kept: before ?? null }, `${name}: as ${snapshot}${kept}`)
  })

/** UTC, as in 20261128T190510.123Z. */
const now = (): string => new Date().toISOString().replace(/[-:]/g, '')
