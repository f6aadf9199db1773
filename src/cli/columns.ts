/**
 * The columns of a table that are shown, the order of its rows, and its units: as lvs takes them.
 */
import { ThinfsError } from '../base/index.js'
import { formatSize } from '../config/index.js'

export interface Column<T> {
  head: string
  isNumber?: true
  /** The value that rows are sorted by; null, for none, comes first. */
  value: (row: T) => string | number | null
  text: (row: T, size: (bytes: number) => string) => string
}

export type Columns<T> = Readonly<Record<string, Column<T>>>

/**
 * The columns that `-o` names: `name,size`, or `+open` for all of `defaults` and more.
 * @throws BAD_ARGUMENT for one that is not there
 */
export function chosen<T>(all: Columns<T>, defaults: readonly string[], list?: string): string[] {
  if (list === undefined) return [...defaults]
  const names = list.replace(/^\+/, '').split(',')
  for (const name of names) mustHave(all, '-o', name)
  return list.startsWith('+') ? [...new Set([...defaults, ...names])] : names
}

/**
 * Compares rows as `--sort` says: `size,name`, and `-size` for the largest first.
 * @throws BAD_ARGUMENT for a column that is not there
 */
export function ordered<T>(all: Columns<T>, rows: readonly T[], list: string): T[] {
  const keys = list.split(',').map(word => {
    const name = word.replace(/^[+-]/, '')
    mustHave(all, '--sort', name)
    return { value: all[name]!.value, sign: word.startsWith('-') ? -1 : 1 }
  })
  return rows.toSorted((a, b) => {
    for (const { value, sign } of keys) {
      const [one, other] = [value(a) ?? '', value(b) ?? '']
      if (one !== other) return one < other ? -sign : sign
    }
    return 0
  })
}

function mustHave<T>(all: Columns<T>, option: string, name: string): void {
  if (Object.hasOwn(all, name)) return
  const what = `${option} ${name}: the columns are ${Object.keys(all).join(', ')}`
  throw new ThinfsError('BAD_ARGUMENT', what)
}

/** Letters of `--units`, as lvs has them, and their bytes; `h` is for people. */
const UNITS = { b: 1, s: 512, k: 2 ** 10, m: 2 ** 20, g: 2 ** 30, t: 2 ** 40, p: 2 ** 50 } as const

/** Those of `--units`, but for `h`. */
export const UNIT_LETTERS = Object.keys(UNITS)

/**
 * How sizes are printed: for people, or as a number of units, with two decimals where it is no
 * whole number.
 * @throws BAD_ARGUMENT for another unit
 */
export function sizesIn(unit = 'h'): (bytes: number) => string {
  if (unit === 'h') return formatSize
  if (!Object.hasOwn(UNITS, unit)) {
    const what = `--units ${unit}: h for people, or one of ${Object.keys(UNITS).join(', ')}`
    throw new ThinfsError('BAD_ARGUMENT', what)
  }
  const size = UNITS[unit as keyof typeof UNITS]
  return bytes => (bytes % size === 0 ? String(bytes / size) : (bytes / size).toFixed(2))
}
