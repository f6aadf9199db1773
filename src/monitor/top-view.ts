/** The view of `thinfs top` as lines of text: it knows of no terminal. */
import { countText, durationText, latencyText, sizeText, timeText } from './page/words.js'
import type { IoRates, PoolRates, VolumeRates } from './rates.js'

/** By what volumes are sorted, by the key that says so; the largest first, but for names. */
export const SORTS = {
  n: { title: 'name', of: ({ name }: VolumeRates) => name },
  r: { title: 'reads', of: ({ io }: VolumeRates) => io.read.perSecond },
  w: { title: 'writes', of: ({ io }: VolumeRates) => io.write.perSecond },
  b: {
    title: 'bytes',
    of: ({ io }: VolumeRates) => io.read.bytesPerSecond + io.write.bytesPerSecond,
  },
  l: { title: 'latency', of: ({ io }: VolumeRates) => io.all.p99Ms },
  a: { title: 'allocation', of: ({ mappedPerSecond }: VolumeRates) => mappedPerSecond },
  m: { title: 'mapped', of: ({ mapped }: VolumeRates) => mapped },
} as const
export type Sort = keyof typeof SORTS

export const isSort = (key: string): key is Sort => Object.hasOwn(SORTS, key)

export interface TopOptions {
  sort: Sort
  /** The other way round. */
  reversed: boolean
  /** Columns of the terminal, which no line is longer than. */
  width: number
  /** Lines of it; volumes that have no room are counted. */
  height: number
}

/** Columns of a name at least. */
const NAME_MIN = 8

interface Column {
  title: string
  width: number
  of(volume: VolumeRates): string
}

/** Those on the right go first where the terminal is narrow. */
const COLUMNS: Column[] = [
  { title: 'r/s', width: 7, of: ({ io }) => countText(io.read.perSecond) },
  { title: 'w/s', width: 7, of: ({ io }) => countText(io.write.perSecond) },
  { title: 'READ/s', width: 8, of: ({ io }) => sizeText(io.read.bytesPerSecond) },
  { title: 'WRITTEN/s', width: 10, of: ({ io }) => sizeText(io.write.bytesPerSecond) },
  { title: 'P99', width: 8, of: ({ io }) => latencyText(io.all.p99Ms) },
  { title: 'ALLOC/s', width: 8, of: volume => sizeText(volume.mappedPerSecond) },
  { title: 'MAPPED', width: 7, of: ({ mapped }) => sizeText(mapped) },
  { title: 'SIZE', width: 7, of: ({ size }) => sizeText(size) },
  { title: 'FULL IN', width: 13, of: fullIn },
  { title: 'P50', width: 8, of: ({ io }) => latencyText(io.all.p50Ms) },
  { title: 'd/s', width: 6, of: ({ io }) => countText(io.discard.perSecond) },
  { title: 'f/s', width: 6, of: ({ io }) => countText(io.flush.perSecond) },
]

/** When a volume maps all of its size, at this rate. */
function fullIn({ mappedPerSecond, mapped, size }: VolumeRates): string {
  if (mappedPerSecond <= 0 || mapped >= size) return '–'
  return durationText((size - mapped) / mappedPerSecond)
}

/** @returns the lines, and which of them is the head of the table */
export function topView(rates: PoolRates, options: TopOptions): { lines: string[]; head: number } {
  const { width, height } = options
  const { io, used, size, usedPerSecond, secondsUntilFull } = rates
  const trend =
    secondsUntilFull !== null
      ? `+${sizeText(usedPerSecond)}/s, full in ${durationText(secondsUntilFull)}`
      : usedPerSecond < 0
        ? `${sizeText(usedPerSecond)}/s`
        : ''
  const above = [
    `${plain(rates.name)}: mode ${rates.mode}, ${timeText(rates.time)}`,
    `data      ${fill(used, size, width)} ${trend}`,
    `metadata  ${fill(rates.metadataUsed, rates.metadataSize, width)}`,
    requestsText(io),
    [
      `latency   p50 ${latencyText(io.all.p50Ms)}, p99 ${latencyText(io.all.p99Ms)}`,
      `${countText(io.coldReadsPerSecond)} cold reads/s`,
      `${countText(rates.commitsPerSecond)} commits/s`,
      `${rates.writesWaiting} wait for space`,
    ].join(', '),
    '',
  ]
  const shown: Column[] = []
  let left = width - NAME_MIN
  for (const column of COLUMNS) {
    left -= column.width + 1
    if (left < 0) break
    shown.push(column)
  }
  const nameWidth = width - shown.reduce((all, column) => all + column.width + 1, 0)
  const row = (name: string, cell: (column: Column) => string): string =>
    [cut(name, nameWidth).padEnd(nameWidth), ...shown.map(c => cell(c).padStart(c.width))].join(' ')
  const volumes = sorted(rates.volumes, options)
  const room = Math.max(0, height - above.length - 1)
  const isCut = volumes.length > room
  const visible = isCut ? volumes.slice(0, Math.max(0, room - 1)) : volumes
  const lines = [
    ...above,
    row('VOLUME', ({ title }) => title),
    ...visible.map(volume => row(plain(volume.name), ({ of }) => of(volume))),
    ...(isCut && room > 0 ? [`${volumes.length - visible.length} more`] : []),
  ]
  const all = lines.slice(0, height).map(line => cut(line, width).trimEnd())
  return { lines: all, head: above.length }
}

function requestsText({ read, write, discard, flush }: IoRates): string {
  const parts = [
    `${countText(read.perSecond)} reads/s ${sizeText(read.bytesPerSecond)}/s`,
    `${countText(write.perSecond)} writes/s ${sizeText(write.bytesPerSecond)}/s`,
    `${countText(discard.perSecond)} discards/s`,
    `${countText(flush.perSecond)} flushes/s`,
  ]
  return `requests  ${parts.join(', ')}`
}

function sorted(
  volumes: readonly VolumeRates[],
  { sort, reversed }: TopOptions,
): readonly VolumeRates[] {
  const { of } = SORTS[sort]
  const sign = (sort === 'n' ? 1 : -1) * (reversed ? -1 : 1)
  return [...volumes].sort((a, b) => {
    const [x, y] = [of(a), of(b)]
    if (x !== y) return x < y ? -sign : sign
    return a.name < b.name ? -1 : 1
  })
}

/** A bar, and what it says. */
function fill(used: number, size: number, width: number): string {
  const share = size === 0 ? 0 : used / size
  const length = Math.max(5, Math.min(30, width - 70))
  const filled = Math.round(share * length)
  const bar = `[${'#'.repeat(filled)}${'-'.repeat(length - filled)}]`
  return `${bar} ${sizeText(used)} of ${sizeText(size)}, ${(share * 100).toFixed(1)}%`
}

/** A name of somebody's choice, without what a terminal would obey. */
const plain = (name: string): string => name.replace(/\p{Cc}/gu, '?')

const cut = (text: string, width: number): string => {
  const characters = [...text]
  return characters.length <= width ? text : `${characters.slice(0, width - 1).join('')}…`
}
