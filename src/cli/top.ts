import { once } from 'node:events'
import { ThinfsError } from '../base/index.js'
import type { DaemonClient } from '../control/index.js'
import type { PoolRates, Sort, topView } from '../monitor/index.js'
import type { PoolStatistics } from '../volumes/index.js'
import { command, type Output, POOL_HELP } from './command.js'
import { printLine } from './output.js'
import { placeOfPool, withDaemonOf } from './pool.js'

interface Options extends Output {
  batch?: true
  iterations?: number
  delay: number
}

export const top = command(
  'top',
  'Watch a mounted pool in the terminal: requests, bytes, latency, allocation, time until it is full.',
  'thinfs top /mnt/thin',
)
  .argument('<POOL>', POOL_HELP)
  .option('-d, --delay <SECONDS>', 'between two looks', delayOf, 1)
  .option('-b, --batch', 'print instead, once or as often as -n says; so does output into a pipe')
  .option('-n, --iterations <COUNT>', 'end after so many looks', countOf)
  .addHelpText(
    'after',
    `
Keys: n name, r reads, w writes, b bytes, l latency, a allocation, m mapped sort the volumes, the same
again the other way round; q quits. FULL IN is when a volume maps all of its size at this rate. With
--json a line for each look, as thinfs stats prints it.`,
  )
  .action(async (pool: string, { json, batch, iterations, delay }: Options) => {
    const place = placeOfPool(pool)
    const { stdout, stdin } = process
    const isBatch = batch === true || json === true || !stdout.isTTY || !stdin.isTTY
    const { ratesOf, topView } = await import('../monitor/index.js')
    const most = iterations ?? (isBatch ? 1 : Number.POSITIVE_INFINITY)
    await withDaemonOf(place, async daemon => {
      const looks = new Looks(daemon, ratesOf, delay)
      if (!isBatch) {
        await onScreen(looks, most, topView)
        return
      }
      for (let i = 0; i < most; i++) {
        const rates = await looks.next()
        const size = { width: stdout.columns ?? PIPE_WIDTH, height: Number.POSITIVE_INFINITY }
        const { lines } = topView(rates, { sort: 'b', reversed: false, ...size })
        const text = json ? JSON.stringify(rates) : `${i > 0 ? '\n' : ''}${lines.join('\n')}`
        if (!(await printLine(text))) return
      }
    })
  })

/** Columns where there is no terminal. */
const PIPE_WIDTH = 132

/** Looks at a pool, each so much later than the one before. */
class Looks {
  readonly #daemon: DaemonClient
  readonly #ratesOf: (before: PoolStatistics | null, after: PoolStatistics) => PoolRates
  readonly #delayMs: number
  #before: PoolStatistics | null = null

  constructor(
    daemon: DaemonClient,
    ratesOf: (before: PoolStatistics | null, after: PoolStatistics) => PoolRates,
    delay: number,
  ) {
    this.#daemon = daemon
    this.#ratesOf = ratesOf
    this.#delayMs = delay * 1000
  }

  /** @param signal ends the wait */
  async next(signal?: AbortSignal): Promise<PoolRates> {
    this.#before ??= await this.#daemon.statistics()
    await pause(this.#delayMs, signal)
    const after = await this.#daemon.statistics()
    const rates = this.#ratesOf(this.#before, after)
    this.#before = after
    return rates
  }
}

function pause(ms: number, signal: AbortSignal | undefined): Promise<void> {
  return new Promise(resolve => {
    const timer = setTimeout(ended, ms)
    function ended(): void {
      clearTimeout(timer)
      signal?.removeEventListener('abort', ended)
      resolve()
    }
    if (signal?.aborted) ended()
    else signal?.addEventListener('abort', ended)
  })
}

const ESC = '\x1b['
/** The alternate screen, without a cursor; and what was there before. */
const ENTER = `${ESC}?1049h${ESC}?25l`
const LEAVE = `${ESC}?25h${ESC}?1049l`
const CTRL_C = '\x03'

/** Shows the pool until q, Ctrl-C or a signal; the terminal is left as it was, whatever happens. */
async function onScreen(looks: Looks, most: number, view: typeof topView): Promise<void> {
  const { stdin, stdout } = process
  const { isSort, SORTS } = await import('../monitor/index.js')
  const ended = new AbortController()
  // A look at a pool whose processes were stopped does not end.
  const aborted = new Promise<null>(resolve =>
    ended.signal.addEventListener('abort', () => resolve(null)),
  )
  let sort: Sort = 'b'
  let reversed = false
  let rates: PoolRates | null = null
  const draw = (): void => {
    const { columns: width, rows } = stdout
    const keys = `q quit   sort: ${Object.entries(SORTS)
      .map(([key, { title }]) => (key === sort ? `[${key} ${title}]` : `${key} ${title}`))
      .join('  ')}`
    const { lines, head } =
      rates === null
        ? { lines: ['looking'], head: -1 }
        : view(rates, { sort, reversed, width, height: rows - 1 })
    const isPlain = Boolean(process.env.NO_COLOR)
    const drawn = lines.map((line, i) =>
      i === head && !isPlain ? `${ESC}7m${line.padEnd(width)}${ESC}0m` : `${line}${ESC}K`,
    )
    const below = `${ESC}J${ESC}${rows};1H${keys.slice(0, width)}`
    stdout.write(`${ESC}H${drawn.join('\r\n')}${below}`)
  }
  const onKey = (key: string): void => {
    for (const one of key) {
      if (one === 'q' || one === CTRL_C) ended.abort()
      else if (isSort(one)) {
        reversed = one === sort && !reversed
        sort = one
        draw()
      }
    }
  }
  const onSignal = (): void => ended.abort()
  stdin.setEncoding('utf8').on('data', onKey)
  stdin.once('end', onSignal)
  stdin.setRawMode(true)
  stdout.on('resize', draw)
  for (const signal of ['SIGTERM', 'SIGHUP'] as const) process.once(signal, onSignal)
  stdout.write(ENTER)
  try {
    draw()
    for (let i = 0; i < most && !ended.signal.aborted; i++) {
      const looking = looks.next(ended.signal)
      // Nobody listens to one that ends later.
      looking.catch(() => {})
      const next = await Promise.race([looking, aborted])
      if (next === null) break
      rates = next
      draw()
    }
  } finally {
    stdout.off('resize', draw)
    stdin.off('data', onKey)
    stdin.setRawMode(false)
    stdin.pause()
    if (!stdout.write(LEAVE)) await once(stdout, 'drain').catch(() => {})
    for (const signal of ['SIGTERM', 'SIGHUP'] as const) process.off(signal, onSignal)
  }
}

function delayOf(text: string): number {
  const seconds = Number(text)
  if (/^\d+(\.\d+)?$/.test(text) && seconds >= 0.1 && seconds <= 3600) return seconds
  throw new ThinfsError('BAD_ARGUMENT', `--delay ${text}: seconds, 0.1 to 3600`)
}

function countOf(text: string): number {
  const count = Number(text)
  if (/^\d{1,9}$/.test(text) && count > 0) return count
  throw new ThinfsError('BAD_ARGUMENT', `--iterations ${text}: how often, 1 or more`)
}
