import { ThinfsError } from '../base/index.js'
import { exactSize, parseSize } from '../config/index.js'
import type { Injection } from '../volumes/index.js'
import { command, type Output, POOL_HELP, print } from './command.js'
import { placeOfPool, withDaemonOf } from './pool.js'

interface Options extends Output {
  readError?: number[]
  writeError?: number[]
  ignoreFlushes?: true
  latency?: number
  clear?: true
}

export const inject = command(
  'inject',
  'Make a volume of a mounted pool fail, forget or be slow, until it is cleared or unmounted.',
  'thinfs inject /srv/pool web --read-error 1M+4K --latency 20ms',
)
  .argument('<POOL>', POOL_HELP)
  .argument('<VOLUME>', 'to inject into; without an option, prints what is injected')
  .option('--read-error <range>', 'reads of OFFSET+LENGTH, as in 1M+4K, fail with EIO', ranges)
  .option('--write-error <range>', 'so do writes and discards of it, and change nothing', ranges)
  .option('--ignore-flushes', 'fsync(2) and flushes succeed, and make nothing durable')
  .option('--latency <time>', 'each request waits for so long first, as in 20ms', milliseconds)
  .option('--clear', 'end what was injected before')
  .action(async (pool: string, name: string, options: Options) => {
    const { readError, writeError, ignoreFlushes, latency, clear } = options
    await withDaemonOf(placeOfPool(pool), async daemon => {
      const injection = await daemon.inject({
        name,
        ...(readError && { readErrors: readError }),
        ...(writeError && { writeErrors: writeError }),
        ...(ignoreFlushes && { ignoreFlushes }),
        ...(latency !== undefined && { latencyMs: latency }),
        ...(clear && { clear }),
      })
      print(options, injection, describe(injection))
    })
  })

/** OFFSET+LENGTH, added to those before. */
function ranges(text: string, before: number[] = []): number[] {
  const [offset, length, ...rest] = text.split('+')
  if (offset === undefined || length === undefined || rest.length > 0) {
    throw new ThinfsError('BAD_ARGUMENT', `${text} is not a range: OFFSET+LENGTH, as in 1M+4K`)
  }
  return [...before, parseSize(offset), parseSize(length)]
}

const TIME = /^(\d{1,8}(?:\.\d{1,3})?)(ms|s)$/

function milliseconds(text: string): number {
  const [, number, unit] = TIME.exec(text) ?? []
  const time = Number(number ?? Number.NaN) * (unit === 's' ? 1000 : 1)
  if (Number.isInteger(time)) return time
  throw new ThinfsError('BAD_ARGUMENT', `${text} is not a time: whole ms, as in 20ms or 1.5s`)
}

function describe({ name, readErrors, writeErrors, ignoreFlushes, latencyMs }: Injection): string {
  const range = ([offset, length]: [number, number]): string =>
    `${exactSize(offset)}+${exactSize(length)}`
  const lines = [
    ...readErrors.map(at => `read error ${range(at)}`),
    ...writeErrors.map(at => `write error ${range(at)}`),
    ...(ignoreFlushes ? ['flushes are ignored'] : []),
    ...(latencyMs > 0 ? [`latency ${latencyMs}ms`] : []),
  ]
  return (lines.length > 0 ? lines : ['nothing is injected'])
    .map(line => `${name}: ${line}`)
    .join('\n')
}
