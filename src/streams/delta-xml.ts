import type { Change } from './changes.js'

/** The facts that thin_delta prints of a pool and of the two devices that it compares. */
export interface DeltaHead {
  time: number
  transactionId: number
  /** Sectors. */
  dataBlockSize: number
  dataBlocks: number
  left: number
  right: number
}

/** The lines that thin_delta prints, each with its end: no id, whatever the superblock has. */
export function* deltaXml(head: DeltaHead, changes: Iterable<Change>): Generator<string> {
  const { time, transactionId, dataBlockSize, dataBlocks, left, right } = head
  yield `<superblock uuid="" time="${time}" transaction="${transactionId}" ` +
    `data_block_size="${dataBlockSize}" nr_data_blocks="${dataBlocks}">\n`
  yield `  <diff left="${left}" right="${right}">\n`
  for (const { kind, begin, length } of changes) {
    yield `    <${kind} begin="${begin}" length="${length}"/>\n`
  }
  yield '  </diff>\n</superblock>\n'
}
