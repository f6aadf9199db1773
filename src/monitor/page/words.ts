/** Numbers as the page says them, and what it works out: nothing here knows of a document. */

const UNITS = ['B', 'K', 'M', 'G', 'T', 'P', 'E']

/** Bytes in three digits, in units of 1024 as everywhere in thinfs: 1.50G. */
export function sizeText(bytes: number): string {
  const size = Math.abs(bytes)
  const unit = size < 1 ? 0 : Math.min(Math.floor(Math.log2(size) / 10), UNITS.length - 1)
  const value = size / 1024 ** unit
  const digits = unit === 0 || value >= 100 ? 0 : value >= 10 ? 1 : 2
  return `${bytes < 0 ? '-' : ''}${value.toFixed(digits)}${UNITS[unit]}`
}

export function countText(perSecond: number): string {
  if (perSecond >= 10_000) return `${(perSecond / 1000).toFixed(1)}k`
  return perSecond.toFixed(perSecond >= 10 || perSecond === 0 ? 0 : 1)
}

export function latencyText(ms: number): string {
  if (ms === 0) return '–'
  if (ms < 1) return `${(ms * 1000).toFixed(0)} µs`
  return ms < 1000 ? `${ms.toFixed(ms < 10 ? 2 : 0)} ms` : `${(ms / 1000).toFixed(1)} s`
}

/** Seconds in the two largest units: 3 d 4 h. */
export function durationText(seconds: number): string {
  const units: [string, number][] = [
    ['y', 31_557_600],
    ['d', 86_400],
    ['h', 3600],
    ['min', 60],
    ['s', 1],
  ]
  const first = units.findIndex(([, length]) => seconds >= length)
  if (first < 0) return 'less than 1 s'
  const [name, length] = units[first]!
  const count = Math.floor(seconds / length)
  const next = units[first + 1]
  const rest = next === undefined ? 0 : Math.floor((seconds - count * length) / next[1])
  return rest > 0 ? `${count} ${name} ${rest} ${next![0]}` : `${count} ${name}`
}

const two = (number: number): string => String(number).padStart(2, '0')

/**
 * The local time.
 * @param time seconds since 1970
 * @param from how exact: 1 for seconds, 60 for minutes, 86400 for the day alone; default: all of it
 */
export function timeText(time: number, from?: number): string {
  const at = new Date(time * 1000)
  const day = `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())}`
  const minute = `${two(at.getHours())}:${two(at.getMinutes())}`
  const second = `${minute}:${two(at.getSeconds())}`
  if (from === undefined) return `${day} ${second}`
  if (from >= 86_400) return day
  return from >= 60 ? minute : second
}

/** A node of the tree of snapshots. */
export interface Twig<V> {
  volume: V
  /** The branch that is drawn before its name. */
  prefix: string
}

/**
 * Volumes in the order of the tree of snapshots: each directly followed by its snapshots. One whose
 * origin is not among them stands by itself; nothing is left out.
 */
export function treeOf<V extends { name: string; origin: string | null }>(
  volumes: readonly V[],
): Twig<V>[] {
  const names = new Set(volumes.map(({ name }) => name))
  const children = new Map<string | null, V[]>()
  for (const volume of volumes) {
    const { origin } = volume
    const parent = origin !== null && names.has(origin) && origin !== volume.name ? origin : null
    const siblings = children.get(parent) ?? []
    siblings.push(volume)
    children.set(parent, siblings)
  }
  const rows: Twig<V>[] = []
  const shown = new Set<string>()
  /** Without recursion: a chain of snapshots may be thousands long. */
  const stack: { volume: V; lead: string; prefix: string }[] = []
  const push = (list: readonly V[], lead: string, isRoot: boolean): void => {
    for (let i = list.length - 1; i >= 0; i--) {
      const isLast = i === list.length - 1
      const prefix = isRoot ? '' : `${lead}${isLast ? '└ ' : '├ '}`
      const below = isRoot ? '' : `${lead}${isLast ? '  ' : '│ '}`
      stack.push({ volume: list[i]!, prefix, lead: below })
    }
  }
  push(children.get(null) ?? [], '', true)
  for (;;) {
    const next = stack.pop()
    if (next === undefined) break
    const { volume, prefix, lead } = next
    rows.push({ volume, prefix })
    shown.add(volume.name)
    push(children.get(volume.name) ?? [], lead, false)
  }
  // Origins that go round in a circle, as after renames, have no root.
  for (const volume of volumes) if (!shown.has(volume.name)) rows.push({ volume, prefix: '' })
  return rows
}

/** The kind of most blocks of a cell of the map. */
export type CellKind = 'free' | 'shared' | number

/** The map of the blocks, as the server sends it. */
export interface Cells {
  blocks: number
  blocksPerCell: number
  dataBlockSize: number
  used: number[]
  exclusive: number[]
  owner: number[]
  volumes: { name: string; exclusive: number }[]
}

/**
 * @returns the place of the volume that has most of the cell for itself where that is most of what
 *   is used
 */
export function kindOf(cells: Cells, i: number): CellKind {
  const used = cells.used[i]!
  if (used === 0) return 'free'
  const owner = cells.owner[i]!
  return owner >= 0 && cells.exclusive[i]! * 2 >= used ? owner : 'shared'
}

/** One sentence about a cell. */
export function cellText(cells: Cells, i: number): string {
  const { blocks, blocksPerCell, used, exclusive, owner, volumes } = cells
  const begin = i * blocksPerCell
  const end = Math.min(begin + blocksPerCell, blocks)
  const range = end - begin === 1 ? `block ${begin}` : `blocks ${begin} to ${end - 1}`
  const here = used[i]!
  if (here === 0) return `${range}: free`
  const parts = [`${here} of ${end - begin} in use`]
  const shared = here - exclusive[i]!
  if (owner[i]! >= 0)
    parts.push(`${exclusive[i]} of one volume alone, most of ${volumes[owner[i]!]!.name}`)
  if (shared > 0) parts.push(`${shared} shared`)
  return `${range}: ${parts.join(', ')}`
}

/** How many colours there are for volumes; the others share one. */
export const COLOURS = 8

/** The volumes that have most space for themselves, by place: these have colours of their own. */
export function colouredVolumes(volumes: readonly { exclusive: number }[]): number[] {
  return volumes
    .map(({ exclusive }, place) => ({ exclusive, place }))
    .filter(({ exclusive }) => exclusive > 0)
    .sort((a, b) => b.exclusive - a.exclusive || a.place - b.place)
    .slice(0, COLOURS)
    .map(({ place }) => place)
}
