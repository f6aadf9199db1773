/** Ranges of bytes as pages of the slots that they are in: a bit each. */
import { PAGE_SIZE } from '../base/index.js'
import { SLOT, SLOT_PAGES } from './cache-memory.js'

/** The end, on the disk, of the slot that has a byte of it. */
export const slotEnd = (offset: number): number => (Math.floor(offset / SLOT) + 1) * SLOT

/** The pages that [from, to) touches of the slot that it is in. */
export function pagesOf(from: number, to: number): number {
  const begin = Math.floor(from / SLOT) * SLOT
  const first = Math.floor((from - begin) / PAGE_SIZE)
  const end = Math.ceil((to - begin) / PAGE_SIZE)
  return ((1 << end) - 1) & ~((1 << first) - 1)
}

/** Those of them that it touches in part. */
export function edgesOf(from: number, to: number): number {
  let pages = 0
  if (from % PAGE_SIZE !== 0) pages |= pagesOf(from, from + 1)
  if (to % PAGE_SIZE !== 0) pages |= pagesOf(to - 1, to)
  return pages
}

export function countOf(pages: number): number {
  let count = 0
  for (let left = pages; left !== 0; left &= left - 1) count++
  return count
}

/** Calls `use` with [first, end) of each run of pages. */
export function forEachRun(pages: number, use: (first: number, end: number) => void): void {
  for (let first = 0; first < SLOT_PAGES; first++) {
    if ((pages & (1 << first)) === 0) continue
    let end = first + 1
    while (end < SLOT_PAGES && (pages & (1 << end)) !== 0) end++
    use(first, end)
    first = end
  }
}
