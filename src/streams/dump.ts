import { ThinfsError } from '../base/index.js'
import {
  type MappedRun,
  MetadataView,
  SUPERBLOCK_VERSION,
  type ViewedDevice,
} from '../metadata/index.js'
import type { Store } from '../storage/index.js'

/** Progress of a dump, by mappings of all devices together. */
export type OnDumpProgress = (done: number, all: number) => void

/** Runs of mappings from one report to the next. */
const REPORT_RUNS = 1024

/** Reports how many mappings were dumped; without a listener it does nothing. */
class DumpProgress {
  readonly #onProgress: OnDumpProgress | null
  #all = 0
  #done = 0
  #runs = 0

  constructor(devices: Iterable<ViewedDevice>, onProgress: OnDumpProgress | null) {
    this.#onProgress = onProgress
    if (onProgress === null) return
    try {
      for (const { details } of devices) this.#all += details.mappedBlocks
    } catch (err) {
      // The dump ends with the same error once it gets there.
      if (!(err instanceof ThinfsError)) throw err
    }
  }

  /** Counts a run of `length` mappings. */
  add(length: number): void {
    if (this.#onProgress === null) return
    this.#done += length
    if (++this.#runs % REPORT_RUNS === 0) this.#onProgress(this.#done, this.#all)
  }
}

/**
 * Metadata as the text that thin_dump prints, line by line.
 * @param held the block of the metadata snapshot that is to be dumped; null for the metadata itself
 * @throws METADATA_CORRUPT in the middle, where it is damaged
 */
export function* dumpXml(
  metadata: Store,
  held: number | null,
  onProgress: OnDumpProgress | null = null,
): Generator<string> {
  const view = new MetadataView(metadata)
  const superblock = view.superblock(held)
  const progress = new DumpProgress(view.devices(superblock), onProgress)
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
      progress.add(length)
    }
    yield '  </device>\n'
  }
  yield '</superblock>\n'
}

/** The same as thin_dump prints it for people: `-f human_readable`. */
export function* dumpHuman(
  metadata: Store,
  held: number | null,
  onProgress: OnDumpProgress | null = null,
): Generator<string> {
  const view = new MetadataView(metadata)
  const superblock = view.superblock(held)
  const progress = new DumpProgress(view.devices(superblock), onProgress)
  const { time, transactionId, flags, dataBlockSectors, dataSpaceMap } = superblock
  yield `begin superblock: "", ${time}, ${transactionId}, ${flags}, ${SUPERBLOCK_VERSION}, ` +
    `${dataBlockSectors}, ${dataSpaceMap.nrBlocks}\n`
  for (const { devId, root, details } of view.devices(superblock)) {
    yield `device: ${devId}\nmapped_blocks: ${details.mappedBlocks}\n` +
      `transaction: ${details.transactionId}\ncreation time: ${details.creationTime}\n` +
      `snap time: ${details.snapshottedTime}\n`
    for (const { begin, dataBegin, length, time } of view.runs(root)) {
      // The last block of a range is part of it.
      yield length === 1
        ? `    ${begin} -> ${dataBegin}, ${time}\n`
        : `    (${begin}..${begin + length - 1}) -> ` +
          `(${dataBegin}..${dataBegin + length - 1}), ${time}\n`
      progress.add(length)
    }
    yield '\n'
  }
  yield 'end superblock\n'
}

/** The same as JSON: sizes are in data blocks, as there. */
export function* dumpJson(
  metadata: Store,
  held: number | null,
  onProgress: OnDumpProgress | null = null,
): Generator<string> {
  const view = new MetadataView(metadata)
  const superblock = view.superblock(held)
  const progress = new DumpProgress(view.devices(superblock), onProgress)
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
      progress.add(run.length)
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
