/**
 * Sizes as people write them: a number and a unit, powers of 1024.
 *
 * `64K`, `64KB`, `64KiB`, `1.5G`, `512B` and `512` (bytes), `8s` (sectors); letters in either case.
 * As with LVM and ZFS all letters are powers of 1024, KB too.
 */
import { GIB, KIB, MIB, SECTOR_SIZE, ThinfsError, TIB } from '../base/index.js'

const UNITS = [
  ['P', TIB * KIB],
  ['T', TIB],
  ['G', GIB],
  ['M', MIB],
  ['K', KIB],
] as const

/** The forms that `parseSize` takes, for messages and help texts. */
export const SIZE_FORMS =
  'bytes, sectors as in 8s, or a number with K, M, G, T or P (powers of 1024), as in 64K, 64KiB or 1.5G'

const SIZE = /^(\d+(?:\.\d+)?)(?:B|(s)|([KMGTP])(?:i?B)?)?$/i

/**
 * Bytes of a size such as `10G`.
 * @throws BAD_ARGUMENT for another form, a part of a byte, or 2^53 bytes and more
 */
export function parseSize(text: string): number {
  const [, number, sectors, letter] = SIZE.exec(text) ?? []
  const named = UNITS.find(([name]) => name === letter?.toUpperCase())
  const unit = sectors === undefined ? (named?.[1] ?? 1) : SECTOR_SIZE
  const size = Number(number ?? Number.NaN) * unit
  if (!Number.isSafeInteger(size)) {
    throw new ThinfsError('BAD_ARGUMENT', `${text || 'nothing'} is not a size; ${SIZE_FORMS}`)
  }
  return size
}

/** A size for people, at most two decimals: `10G`, `1.5G`, `64K`, `100B`, `0`. */
export function formatSize(bytes: number): string {
  if (bytes === 0) return '0'
  const [name, unit] = UNITS.find(([, unit]) => bytes >= unit) ?? ['B', 1]
  return `${Math.round((bytes / unit) * 100) / 100}${name}`
}

/** Sizes that are compared: to the byte where two that differ would look alike. */
export function formatSizes<T extends number[]>(...sizes: T): { [I in keyof T]: string } {
  const texts = sizes.map(formatSize)
  const isAlike = (at: number): boolean =>
    texts.some((text, i) => text === texts[at] && sizes[i] !== sizes[at])
  return sizes.map((size, at) => (isAlike(at) ? exactSize(size) : texts[at])) as {
    [I in keyof T]: string
  }
}

/** A size that reads back to the byte: in the largest unit that divides it. */
export function exactSize(bytes: number): string {
  const [name, unit] = UNITS.find(([, unit]) => bytes >= unit && bytes % unit === 0) ?? ['', 1]
  return `${bytes / unit}${name}`
}
