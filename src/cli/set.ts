import { ThinfsError } from '../base/index.js'
import { formatSize, type PoolConfig, parseSize } from '../config/index.js'
import type { Change, PoolSettings, VolumeInfo, VolumeRules } from '../volumes/index.js'
import { type Output, poolCommand, print } from './command.js'
import { withDaemonOr, withPool } from './pool.js'

/** Keys of pool.yaml that may be set, and what their text is there. */
const KEYS: Record<string, (text: string) => PoolSettings> = {
  on_full: text => ({ onFull: text as PoolConfig['onFull'] }),
  queue_timeout: text => ({ queueTimeout: Number(text) }),
  min_free_space: text => ({ minFreeSpace: Number(text.replace(/%$/, '')) }),
}

/** Rules of a volume. */
const RULES: Record<string, (text: string) => VolumeRules> = {
  limit: text => ({ limit: sizeOf(text) }),
  reserve: text => ({ reserve: sizeOf(text) }),
  on_full: text => ({ onFull: (text === 'none' ? 'pool' : text) as PoolConfig['onFull'] }),
  queue_timeout: text => ({ queueTimeout: timeoutOf(text) }),
}

export const set = poolCommand(
  'set',
  `Set how a pool, or one of its volumes, uses space, at once where it is mounted. Of a pool, and in
its pool.yaml: on_full, queue_timeout, min_free_space. Writes that wait for space fail with on_full=error, and
begin to wait anew with on_full=queue. Of a volume: limit, the most that it may map, reserve, what the
pool keeps for it, and on_full and queue_timeout, for this volume alone.`,
  'thinfs set /srv/pool web limit=5G reserve=1G',
)
  .usage('[options] <POOL> [VOLUME] <KEY=VALUE...>')
  .argument(
    '<KEY=VALUE...>',
    `of the pool: on_full=queue, on_full=error; queue_timeout=60: seconds, 0 for ever;
min_free_space=10%: else no volume is made; after the name of a volume: limit=5G, limit=none; reserve=1G, reserve=none;
on_full=error, on_full=none: as the pool; queue_timeout=5, queue_timeout=none`,
  )
  .action(async (pool: string, words: string[], output: Output) => {
    const [first, ...rest] = words as [string, ...string[]]
    const [key = ''] = first.split('=')
    if (rest.length === 0 || Object.hasOwn(KEYS, key)) await setPool(pool, words, output)
    else await setVolume(pool, first, rest, output)
  })

async function setPool(pool: string, words: readonly string[], output: Output): Promise<void> {
  const found = parse(words, KEYS, 'other keys of pool.yaml count from the next mount on')
  const settings: PoolSettings = Object.assign(
    {},
    ...found.map(({ key, text }) => KEYS[key]!(text)),
  )
  const change: Change = {
    settings: found.map(({ key, text }) => [[key], text]),
    apply: config => ({ ...config, ...settings }),
  }
  const { changePoolYaml, mustTake } = await import('../volumes/index.js')
  const write = async (file: string): Promise<void> => {
    mustTake(file, change)
    await changePoolYaml(file, change)
  }
  await withDaemonOr(
    pool,
    'write',
    async (admin, { file }) => {
      // An engine that follows one that dies now reads it there.
      await write(file)
      await admin.set(settings)
    },
    ({ file }) => write(file),
  )
  print(output, settings, '')
}

async function setVolume(
  pool: string,
  name: string,
  words: readonly string[],
  output: Output,
): Promise<void> {
  const found = parse(words, RULES, 'thinfs set --help has what a pool takes')
  const rules: VolumeRules = Object.assign({}, ...found.map(({ key, text }) => RULES[key]!(text)))
  const volume = await withPool(pool, 'write', admin => admin.setVolume({ name, ...rules }))
  print(output, volume, describe(volume))
}

function describe({ name, mapped, limit, reserve, onFull, queueTimeout }: VolumeInfo): string {
  const size = (bytes: number | null): string => (bytes === null ? 'none' : formatSize(bytes))
  const timeout = queueTimeout === 0 ? 'for ever' : `${queueTimeout} s`
  const full =
    (onFull === null ? '' : `, on full: ${onFull}`) +
    (queueTimeout === null ? '' : `, queue timeout: ${timeout}`)
  return `${name}: limit ${size(limit)}, reserve ${size(reserve)}${full}, ${formatSize(mapped)} mapped`
}

/** @returns seconds; -1 for none of its own */
function timeoutOf(text: string): number {
  if (text === 'none') return -1
  if (/^\d+$/.test(text)) return Number(text)
  const what = 'seconds, 0 for ever, or none: as the pool'
  throw new ThinfsError('BAD_ARGUMENT', `queue_timeout=${text}: ${what}`)
}

const sizeOf = (text: string): number => (text === 'none' ? 0 : parseSize(text))

function parse(
  words: readonly string[],
  keys: Record<string, unknown>,
  others: string,
): { key: string; text: string }[] {
  return words.map(word => {
    const [, key = '', text = ''] = /^([^=]*)=(.*)$/s.exec(word) ?? []
    if (Object.hasOwn(keys, key)) return { key, text }
    const allowed = `allowed are ${Object.keys(keys).join(', ')}, as in KEY=VALUE`
    throw new ThinfsError('BAD_ARGUMENT', `${word}: ${allowed}; ${others}`)
  })
}
