import { InvalidArgumentError } from 'commander'
import { ThinfsError } from '../base/index.js'
import type { PrunedSnapshot } from '../volumes/index.js'
import { type Output, poolCommand, print } from './command.js'
import { mustBeWanted, YES_OPTION } from './confirm.js'
import { localTime } from './list.js'
import { configOf, holdersOf, withPool } from './pool.js'

interface Options extends Output {
  keepLast?: number
  keepHourly?: number
  keepDaily?: number
  keepWeekly?: number
  keepMonthly?: number
  keepYearly?: number
  dryRun?: true
  yes?: true
}

export const prune = poolCommand(
  'prune',
  'Remove old snapshots of a volume, but for those that the rules keep.',
  'thinfs prune /srv/pool web --keep-last 3 --keep-daily 7 --keep-weekly 4 --dry-run',
)
  .argument('<NAME>', 'the volume, which stays; its snapshots are the volumes named NAME@…')
  .option('--keep-last <n>', 'keep the last N snapshots', count)
  .option('--keep-hourly <n>', 'for the last N hours that have one, keep the newest of each', count)
  .option('--keep-daily <n>', 'the same for days', count)
  .option('--keep-weekly <n>', 'the same for weeks, from Monday on', count)
  .option('--keep-monthly <n>', 'the same for months', count)
  .option('--keep-yearly <n>', 'the same for years', count)
  .option(...YES_OPTION)
  .option('-n, --dry-run', 'remove nothing, say what would go')
  .addHelpText(
    'after',
    `
The rules are those of restic forget and borg prune: each counts for itself, by the time at which a
snapshot was made or received, in local time, and what one of them keeps stays. A rule that may keep
more than there are periods keeps the oldest snapshot, too.

A snapshot is a volume like any other, and may be in use as one. So only those named NAME@… go, as
thinfs snapshot --suffix, rollback and receive name them, whatever they are a snapshot of. What has
another name stays, and so does what pool.yaml names. One that somebody has open stays, too: the
command says so, removes the others, and exits with 1.`,
  )
  .action(async (pool: string, name: string, options: Options) => {
    const { dryRun = false } = options
    const rules = rulesOf(options)
    // The next opening would make them again, of what the volume is then.
    const exceptOf = async () => Object.keys((await configOf(pool, dryRun)).volumes)
    const question = async (): Promise<string | null> => {
      const except = await exceptOf()
      const plan = await withPool(pool, 'read', admin =>
        admin.prune({ name, except, dryRun: true, ...rules }),
      )
      const gone = plan.filter(({ kept, busy }) => kept.length === 0 && busy === null)
      return gone.length === 0 ? null : `Remove ${gone.map(({ name }) => name).join(', ')}?`
    }
    if (!dryRun) {
      await mustBeWanted('removing snapshots', { yes: options.yes, dryRun: true, question })
    }
    const { snapshots, stay } = await withPool(
      pool,
      dryRun ? 'read' : 'write',
      async (admin, { file }) => {
        const except = await exceptOf()
        const snapshots = await admin.prune({ name, except, dryRun, ...rules })
        const stay: string[] = []
        for (const { name, busy } of snapshots) {
          if (busy === null) continue
          const holders = await holdersOf(admin, file, name)
          stay.push(holders.length === 0 ? busy : `${busy}, by ${holders.join(', ')}`)
        }
        return { snapshots, stay }
      },
    )
    const { table } = await import('./table.js')
    const rows = snapshots.map(snapshot => row(snapshot, dryRun))
    const text = rows.length === 0 ? '' : table([['SNAPSHOT', 'CREATED', 'OUTCOME'], ...rows])
    print(options, { dryRun, snapshots }, text)
    if (!dryRun && stay.length > 0) throw new ThinfsError('VOLUME_BUSY', stay.join('; '))
  })

function rulesOf(options: Options) {
  const rules = {
    last: options.keepLast,
    hourly: options.keepHourly,
    daily: options.keepDaily,
    weekly: options.keepWeekly,
    monthly: options.keepMonthly,
    yearly: options.keepYearly,
  }
  const given = Object.entries(rules).filter(([, n]) => n !== undefined)
  if (given.length > 0) return Object.fromEntries(given)
  const what = 'nothing says what to keep: give --keep-last N, --keep-daily N or another'
  throw new ThinfsError('BAD_ARGUMENT', `${what}; thinfs remove takes all that it is given away`)
}

function count(text: string): number {
  if (/^\d{1,9}$/.test(text) && Number(text) > 0) return Number(text)
  throw new InvalidArgumentError('A number of snapshots from 1 is what it takes.')
}

function row({ name, created, kept, busy }: PrunedSnapshot, isDry: boolean): string[] {
  const gone = isDry ? 'would be removed' : 'removed'
  const outcome = kept.length > 0 ? `kept: ${kept.join(', ')}` : busy === null ? gone : 'in use'
  return [name, created === null ? '-' : localTime(created), outcome]
}
