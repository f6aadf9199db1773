import { volumeMissing } from '../base/index.js'
import type { PoolAdmin, VolumeInfo } from '../volumes/index.js'
import { type Columns, chosen, ordered, sizesIn } from './columns.js'
import { type Output, poolCommand, print } from './command.js'
import { withPool } from './pool.js'

interface Options extends Output {
  exclusive?: true
  columns?: string
  sort?: string
  noheadings?: true
  units?: string
  tree?: true
}

const COLUMNS: Columns<VolumeInfo> = {
  name: { head: 'NAME', value: ({ name }) => name, text: ({ name }) => name },
  id: { head: 'ID', isNumber: true, value: ({ devId }) => devId, text: ({ devId }) => `${devId}` },
  size: sized('SIZE', ({ size }) => size),
  mapped: sized('MAPPED', ({ mapped }) => mapped),
  'data%': {
    head: 'DATA%',
    isNumber: true,
    value: percentOf,
    text: row => percent(percentOf(row)),
  },
  exclusive: sized('EXCLUSIVE', ({ exclusive }) => exclusive),
  limit: sized('LIMIT', ({ limit }) => limit),
  reserve: sized('RESERVE', ({ reserve }) => reserve),
  on_full: { head: 'ON_FULL', value: ({ onFull }) => onFull, text: ({ onFull }) => onFull ?? '-' },
  queue_timeout: {
    head: 'QUEUE_TIMEOUT',
    isNumber: true,
    value: ({ queueTimeout }) => queueTimeout,
    text: ({ queueTimeout }) => (queueTimeout === null ? '-' : `${queueTimeout} s`),
  },
  origin: { head: 'ORIGIN', value: originOf, text: row => originOf(row) ?? '-' },
  created: {
    head: 'CREATED',
    value: ({ created }) => created,
    text: ({ created }) => (created === null ? '-' : localTime(created)),
  },
  open: { head: 'OPEN', value: ({ open }) => `${open}`, text: ({ open }) => (open ? 'yes' : 'no') },
}

export const COLUMN_NAMES = Object.keys(COLUMNS)

export const list = poolCommand(
  'list',
  'List the volumes: size, space mapped, origin, and when each was made.',
  "thinfs list /srv/pool 'web*' -o name,mapped --sort -mapped",
)
  .argument('[NAME...]', 'of volumes; * and ? stand for any characters, and for one')
  .option(
    '--exclusive',
    'count what removing each would give back, and all those named: a look at every mapping',
  )
  .option('-o, --columns <list>', `of ${COLUMN_NAMES.join(', ')}; +exclusive adds it`)
  .option('--sort <columns>', 'as in size,name; -size: the largest first (default: name)')
  .option('--noheadings', 'without the first line')
  .option('--units <unit>', 'sizes in b, s (sectors), k, m, g, t or p, without the letter')
  .option('--tree', 'snapshots below their origin')
  .action(async (pool: string, patterns: string[], options: Options) => {
    const { table } = await import('./table.js')
    const size = sizesIn(options.units)
    const exclusive = options.exclusive === true || (options.columns ?? '').includes('exclusive')
    const { all, found, together } = await withPool(pool, 'read', async admin => {
      // Of named ones alone it counts what they have: that is a look at every mapping.
      const countsAll = exclusive && patterns.length === 0
      const all = await admin.list({ exclusive: countsAll })
      let found = named(all, patterns)
      if (exclusive && !countsAll) {
        found = await admin.list({ exclusive, names: found.map(({ name }) => name) })
      }
      const counts = options.exclusive === true && patterns.length > 0
      return { all, found, together: counts ? await togetherOf(admin, found) : null }
    })
    const columns = chosen(COLUMNS, usual(all), options.columns)
    const sorted = options.sort === undefined ? found : ordered(COLUMNS, found, options.sort)
    const shown = options.tree ? asTree(sorted) : sorted.map(volume => ({ volume, branch: '' }))
    const rows = shown.map(({ volume, branch }) =>
      columns.map(name => `${name === 'name' ? branch : ''}${COLUMNS[name]!.text(volume, size)}`),
    )
    const heads = options.noheadings ? [] : [columns.map(name => COLUMNS[name]!.head)]
    const numbers = columns.flatMap((name, i) => (COLUMNS[name]!.isNumber ? i : []))
    const text = table([...heads, ...rows], numbers)
    if (together === null) print(options, sorted, text)
    else {
      const last = `removing all of these gives back ${size(together)}`
      print(options, { volumes: sorted, together }, `${text}\n${last}`)
    }
  })

function sized(
  head: string,
  value: (volume: VolumeInfo) => number | null,
): Columns<VolumeInfo>[''] {
  const text = (row: VolumeInfo, size: (bytes: number) => string): string => {
    const bytes = value(row)
    return bytes === null ? '-' : size(bytes)
  }
  return { head, isNumber: true, value, text }
}

/** Bytes that removing all of some volumes gives back. */
async function togetherOf(admin: PoolAdmin, volumes: readonly VolumeInfo[]): Promise<number> {
  return (await admin.exclusive({ names: volumes.map(({ name }) => name) })).bytes
}

/** The columns of who asks for none: most volumes have no rules of their own. */
function usual(volumes: readonly VolumeInfo[]): string[] {
  const isUnused = (name: string): boolean =>
    ['limit', 'reserve', 'on_full', 'queue_timeout'].includes(name) &&
    volumes.every(volume => COLUMNS[name]!.value(volume) === null)
  return Object.keys(COLUMNS).filter(name => !isUnused(name))
}

/** The volume that one is a snapshot of, or else the file that it shows where it maps nothing. */
function originOf({ origin, externalOrigin }: VolumeInfo): string | null {
  return origin ?? externalOrigin
}

/** Of a volume that is no whole number of blocks more is mapped than it has. */
function percentOf({ size, mapped }: VolumeInfo): number | null {
  return size === 0 ? null : Math.min((mapped / size) * 100, 100)
}

const percent = (value: number | null): string => (value === null ? '-' : value.toFixed(2))

/**
 * The volumes that a pattern fits, all without one.
 * @throws VOLUME_MISSING for a name without `*` and `?` that no volume has
 */
function named(volumes: readonly VolumeInfo[], patterns: readonly string[]): VolumeInfo[] {
  if (patterns.length === 0) return [...volumes]
  const tests = patterns.map(pattern => {
    if (volumes.some(({ name }) => name === pattern)) return (name: string) => name === pattern
    if (!/[*?]/.test(pattern)) throw volumeMissing(pattern)
    const source = pattern
      .replace(/[^\w*?]/gu, '\\$&')
      .replaceAll('*', '.*')
      .replaceAll('?', '.')
    const glob = new RegExp(`^${source}$`, 's')
    return (name: string) => glob.test(name)
  })
  return volumes.filter(({ name }) => tests.some(test => test(name)))
}

/** Each volume with its snapshots below it, and what stands before its name, as lsblk draws it. */
function asTree(volumes: readonly VolumeInfo[]): { volume: VolumeInfo; branch: string }[] {
  const names = new Set(volumes.map(({ name }) => name))
  const below = new Map<string | null, VolumeInfo[]>()
  for (const volume of volumes) {
    const parent = volume.origin !== null && names.has(volume.origin) ? volume.origin : null
    below.set(parent, [...(below.get(parent) ?? []), volume])
  }
  const draw = (parent: string | null, indent: string): ReturnType<typeof asTree> => {
    const siblings = below.get(parent) ?? []
    return siblings.flatMap((volume, i) => {
      const isLast = i === siblings.length - 1
      const branch = parent === null ? '' : `${indent}${isLast ? '└─' : '├─'}`
      const next = parent === null ? '' : `${indent}${isLast ? '  ' : '│ '}`
      return [{ volume, branch }, ...draw(volume.name, next)]
    })
  }
  return draw(null, '')
}

/** @param time seconds since 1970 */
export function localTime(time: number): string {
  // Intl would load ICU's data first, which takes longer than all the rest of a list.
  const date = new Date(time * 1000)
  const local = new Date(date.getTime() - date.getTimezoneOffset() * 60_000)
  return local.toISOString().slice(0, 'YYYY-MM-DDTHH:MM'.length).replace('T', ' ')
}
