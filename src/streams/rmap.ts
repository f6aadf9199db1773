import { MetadataView } from '../metadata/index.js'
import type { Store } from '../storage/index.js'

/** Data blocks [begin, end), and the virtual blocks of a device that are mapped to them. */
export interface ReverseRun {
  begin: number
  end: number
  devId: number
  thinBegin: number
}

/**
 * Finds the mappings of a range of data blocks: all mappings of all devices are read.
 * @param held the block of the metadata snapshot to look at; null for the metadata itself
 * @returns runs by data block, then by device
 * @throws METADATA_CORRUPT
 */
export function reverseMap(
  metadata: Store,
  held: number | null,
  range: { begin: number; end: number },
): ReverseRun[] {
  const view = new MetadataView(metadata)
  const found: ReverseRun[] = []
  for (const { devId, root } of view.devices(view.superblock(held))) {
    let last: ReverseRun | null = null
    for (const run of view.runs(root)) {
      const begin = Math.max(run.dataBegin, range.begin)
      const end = Math.min(run.dataBegin + run.length, range.end)
      if (begin >= end) continue
      const thinBegin = run.begin + (begin - run.dataBegin)
      // Neighbours that differ in their time alone.
      const isNext: boolean =
        last !== null &&
        last.end === begin &&
        last.thinBegin + (last.end - last.begin) === thinBegin
      if (isNext) last!.end = end
      else {
        last = { begin, end, devId, thinBegin }
        found.push(last)
      }
    }
  }
  return found.sort((a, b) => a.begin - b.begin || a.devId - b.devId || a.thinBegin - b.thinBegin)
}
