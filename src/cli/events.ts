import { setTimeout as sleep } from 'node:timers/promises'
import { ThinfsError } from '../base/index.js'
import { connectDaemon, type DaemonClient } from '../control/index.js'
import { command, POOL_HELP } from './command.js'
import { printLine } from './output.js'
import { placeOfPool, withDaemonOf } from './pool.js'

interface Options {
  since?: number
  follow: boolean
}

/** How long a daemon that has died may stay without one that answers in its place. */
const PATIENCE_MS = 10_000
const LOOK_MS = 100

export const events = command(
  'events',
  'Print the events of a mounted pool as they come, a line of JSON each, until it is unmounted.',
  'thinfs events /mnt/thin --since 1h',
)
  .argument('<POOL>', POOL_HELP)
  .option(
    '--since <WHEN>',
    'first those of the last 256 since then: a time ago as 90s, 10m, 2h, 1d, a date as 2026-11-28T22:00, or seconds since 1970',
    whenOf,
  )
  .option('--no-follow', 'end after those, instead of waiting for more')
  .addHelpText(
    'after',
    `
The same events run the command of hooks in pool.yaml; docs/MONITORING.md lists them.`,
  )
  .action(async (pool: string, { since, follow }: Options) => {
    const place = placeOfPool(pool)
    let after: number | undefined = since === undefined ? undefined : 0
    let isOver = false
    /** Prints what comes over one connection, for as long as that lasts. */
    const print = async (daemon: DaemonClient): Promise<void> => {
      while (!isOver) {
        const request: { after?: number; waits: boolean } = {
          ...(after === undefined ? {} : { after }),
          waits: follow && after !== undefined && after > 0,
        }
        const { events, last, ended } = await daemon.events(request)
        after = last
        isOver = ended || !follow
        for (const { id: _, ...event } of events) {
          if (event.time >= (since ?? 0) && !(await printLine(JSON.stringify(event)))) {
            isOver = true
            return
          }
        }
      }
    }
    await withDaemonOf(place, daemon => print(daemon).catch(mayBeGone))
    for (let waited = 0; !isOver; waited += LOOK_MS) {
      const daemon = await connectDaemon(place)
      if (daemon !== null) {
        waited = 0
        await print(daemon)
          .catch(mayBeGone)
          .finally(() => daemon.close())
      } else if (waited >= PATIENCE_MS) {
        throw new ThinfsError('DAEMON_FAILED', `${place.file}: nobody answers any more`)
      }
      if (!isOver) await sleep(LOOK_MS)
    }
  })

/** A daemon that dies leaves its place to the engine, which is asked then. */
function mayBeGone(err: unknown): void {
  if (!(err instanceof ThinfsError && err.code === 'DAEMON_FAILED')) throw err
}

const UNITS: Readonly<Record<string, number>> = { s: 1, m: 60, h: 3600, d: 86_400 }

/** @returns seconds since 1970 */
function whenOf(text: string): number {
  const [, count, unit] = /^(\d{1,9})([smhd])$/.exec(text) ?? []
  if (unit !== undefined) return Date.now() / 1000 - Number(count) * UNITS[unit]!
  if (/^\d{1,12}(\.\d+)?$/.test(text)) return Number(text)
  const date = /^\d{4}-\d\d-\d\d/.test(text) ? Date.parse(text) : Number.NaN
  if (!Number.isNaN(date)) return date / 1000
  throw new ThinfsError(
    'BAD_ARGUMENT',
    `--since ${text}: a time ago as 10m, a date as 2026-11-28T22:00, or seconds since 1970`,
  )
}
