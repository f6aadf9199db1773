import { ThinfsError } from '../base/index.js'
import { type MappedRun, MetadataView, SUPERBLOCK_VERSION } from '../metadata/index.js'
import type { Store } from '../storage/index.js'

/**
 * Metadata as the text that thin_dump prints, line by line.
 * @param held the block of the metadata snapshot that is to be dumped; null for the metadata itself
 * @throws METADATA_CORRUPT in the middle, where it is damaged
 */
export function* dumpXml(metadata: Store, held: number | null): Generator<string> {
  const view = new MetadataView(metadata)
  const superblock = view.superblock(held)
  const { time, transactionId, flags, dataBlockSectors, dataSpaceMap } = superblock
  yield `<superblock uuid="" time="${time}" transaction="${transactionId}" flags="${flags}" ` +
    `version="${SUPERBLOCK_VERSION}" data_block_size="${dataBlockSectors}" ` +
    `nr_data_blocks="${dataSpaceMap.nrBlocks}">\n`
  for (const { devId, root, details } of view.devices(superblock)) {
    yield `  <device dev_id="${devId}" mapped_blocks="${details.mappedBlocks}" ` +
      `transaction="${details.transactionId}" creation_time="${details.creationTime}" ` +
      `snap_time="${details.snapshottedTime}">\n`
    for (const { begin, dataBegin, length, time } of view.runs(root)) {
      yield length === 1
        ? `    <single_mapping origin_block="${begin}" data_block="${dataBegin}" time="${time}"/>\n`
        : `    <range_mapping origin_begin="${begin}" data_begin="${dataBegin}" ` +
          `length="${length}" time="${time}"/>\n`
    }
    yield '  </device>\n'
  }
  yield '</superblock>\n'
}

/** The same as JSON: sizes are in data blocks, as there. */
export function* dumpJson(metadata: Store, held: number | null): Generator<string> {
  const view = new MetadataView(metadata)
  const superblock = view.superblock(held)
  const { time, transactionId, flags, dataBlockSectors, dataSpaceMap } = superblock
  const head = {
    ...{ time, transactionId, flags, version: SUPERBLOCK_VERSION, dataBlockSectors },
    nrDataBlocks: dataSpaceMap.nrBlocks,
  }
  yield `${JSON.stringify(head).slice(0, -1)},"devices":[`
  let isFirst = true
  for (const { devId, root, details } of view.devices(superblock)) {
    yield `${isFirst ? '' : ','}\n${JSON.stringify({ devId, ...details }).slice(0, -1)},"mappings":[`
    isFirst = false
    let separator = '\n'
    for (const run of view.runs(root)) {
      yield `${separator}${JSON.stringify(run)}`
      separator = ',\n'
    }
    yield ']}'
  }
  yield ']}\n'
}

/** The runs of a mapping tree, ascending. @throws METADATA_CORRUPT */
export const mappedRuns = (metadata: Store, root: number): Generator<MappedRun> =>
  new MetadataView(metadata).runs(root)

/** The block of the metadata snapshot that is held. @throws SNAPSHOT_NOT_HELD */
export function heldRootOf(metadata: Store): number {
  const { heldRoot } = new MetadataView(metadata).superblock(null)
  if (heldRoot !== 0) return heldRoot
  throw new ThinfsError('SNAPSHOT_NOT_HELD', `${metadata.path}: it has no metadata snapshot`)
}
