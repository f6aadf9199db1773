import { formatSize } from '../config/index.js'

/**
 * Says on stderr that the host's disk cannot hold all that a data file may come to hold. The file
 * is sparse: it is made, or made larger, all the same.
 * @param wanted bytes that the file may still take
 * @param left bytes that the host has for it; null where nothing grows
 */
export function noteSmallHost(path: string, wanted: number, left: number | null): void {
  if (left === null || left >= wanted) return
  process.stderr.write(`thinfs: ${path}: the host's disk has ${formatSize(left)} left for it\n`)
}
