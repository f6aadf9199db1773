import { setTimeout as sleep } from 'node:timers/promises'
import { MIB, ThinfsError } from '../base/index.js'
import type { CacheRates, OperationRates, PoolRates } from '../monitor/index.js'
import type { PoolStatistics } from '../volumes/index.js'
import { command, type Output, POOL_HELP } from './command.js'
import { printLine } from './output.js'
import { placeOfPool, withDaemonOf } from './pool.js'

export const stats = command(
  'stats',
  'Report requests, bytes and latency of a mounted pool and its volumes, as iostat -x does.',
  'thinfs stats /mnt/thin 1',
)
  .argument('<POOL>', POOL_HELP)
  .argument('[INTERVAL]', 'seconds between reports; left out, there is one report', secondsOf)
  .argument('[COUNT]', 'reports; left out, they go on until Ctrl-C', countOf)
  .addHelpText(
    'after',
    `
The first report is of the time since the pool was mounted, each other of the time since the one
before. The first row is the pool.

r, w, d, f    reads, writes, discards (and ranges zeroed), flushes
MB/s          units of 1024 * 1024 bytes
ahead, wasted MB/s read ahead of readers, and asked for or not, where the data is on another machine
await, p99    milliseconds that a request took in the engine: the mean, and what 99 of 100 stayed below

With --json a line for each report, with sizes in bytes and durations in milliseconds.`,
  )
  .action(
    async (
      pool: string,
      interval: number | undefined,
      count: number | undefined,
      { json }: Output,
    ) => {
      const place = placeOfPool(pool)
      const { ratesOf } = await import('../monitor/index.js')
      const { table } = await import('./table.js')
      const most = count ?? (interval === undefined ? 1 : Number.POSITIVE_INFINITY)
      await withDaemonOf(place, async daemon => {
        let before: PoolStatistics | null = null
        for (let i = 0; i < most; i++) {
          if (i > 0) await sleep(interval! * 1000)
          const after = await daemon.statistics()
          const rates = ratesOf(before, after)
          before = after
          const text = json ? JSON.stringify(rates) : tablesOf(rates, table)
          const gap = i > 0 && !json ? '\n' : ''
          if (!(await printLine(`${gap}${text}`))) return
        }
      })
    },
  )

function secondsOf(text: string): number {
  const seconds = Number(text)
  if (/^\d+(\.\d+)?$/.test(text) && seconds > 0 && seconds <= 86_400) return seconds
  throw new ThinfsError('BAD_ARGUMENT', `INTERVAL ${text}: seconds, as 1 or 0.5, a day at most`)
}

function countOf(text: string): number {
  const count = Number(text)
  if (/^\d+$/.test(text) && Number.isSafeInteger(count) && count > 0) return count
  throw new ThinfsError('BAD_ARGUMENT', `COUNT ${text}: how many reports, 1 or more`)
}

const HEAD = [
  ...['DEVICE', 'r/s', 'rMB/s', 'r_await', 'r_p99', 'w/s', 'wMB/s', 'w_await', 'w_p99'],
  ...['d/s', 'dMB/s', 'd_await', 'f/s', 'f_await'],
]
const RIGHT = HEAD.map((_, i) => i).slice(1)

const CACHE_HEAD = [
  ...['CACHE', 'hit/s', 'miss/s', 'ahead', 'wasted', 'sentMB/s', 'dirtyMB', 'limitMB'],
  ...['drainMB/s', 'waiting', 'reconnects'],
]

/** The pool and its volumes; and the cache before data on another machine. */
function tablesOf(
  rates: PoolRates,
  table: (rows: string[][], right: readonly number[]) => string,
): string {
  const volumes = table(rowsOf(rates), RIGHT)
  if (rates.cache === null) return volumes
  const rows = [CACHE_HEAD, [rates.name, ...cacheRow(rates.cache)]]
  return `${volumes}\n\n${table(rows, CACHE_HEAD.map((_, i) => i).slice(1))}`
}

const cacheRow = (cache: CacheRates): string[] => {
  const mebibytes = (bytes: number): string => (bytes / MIB).toFixed(2)
  return [
    ...[cache.hitsPerSecond.toFixed(2), cache.missesPerSecond.toFixed(2)],
    ...[cache.aheadUsedPerSecond, cache.aheadWastedPerSecond, cache.sentPerSecond].map(mebibytes),
    ...[cache.dirty, cache.dirtyLimit, cache.drainPerSecond].map(mebibytes),
    ...[String(cache.writersWaiting), String(cache.reconnects)],
  ]
}

function rowsOf(rates: PoolRates): string[][] {
  const rows = [{ name: rates.name, io: rates.io }, ...rates.volumes].map(({ name, io }) => [
    name,
    ...[...requests(io.read), ms(io.read.p99Ms)],
    ...[...requests(io.write), ms(io.write.p99Ms)],
    ...requests(io.discard),
    ...[io.flush.perSecond.toFixed(2), ms(io.flush.meanMs)],
  ])
  return [HEAD, ...rows]
}

const requests = ({ perSecond, bytesPerSecond, meanMs }: OperationRates): string[] => [
  perSecond.toFixed(2),
  (bytesPerSecond / MIB).toFixed(2),
  ms(meanMs),
]

const ms = (milliseconds: number): string => milliseconds.toFixed(milliseconds < 10 ? 3 : 1)
