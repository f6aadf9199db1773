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

/** How the parts of a dump are written. */
interface Format {
  head(superblock: ReturnType<MetadataView['superblock']>): string
  device(device: ViewedDevice, isFirst: boolean): string
  run(run: MappedRun, isFirst: boolean): string
  deviceEnd: string
  end: string
}

const XML: Format = {
  head: ({ time, transactionId, flags, dataBlockSectors, dataSpaceMap }) =>
    `<superblock uuid="" time="${time}" transaction="${transactionId}" flags="${flags}" ` +
    `version="${SUPERBLOCK_VERSION}" data_block_size="${dataBlockSectors}" ` +
    `nr_data_blocks="${dataSpaceMap.nrBlocks}">\n`,
  device: ({ devId, details }) =>
    `  <device dev_id="${devId}" mapped_blocks="${details.mappedBlocks}" ` +
    `transaction="${details.transactionId}" creation_time="${details.creationTime}" ` +
    `snap_time="${details.snapshottedTime}">\n`,
  run: ({ begin, dataBegin, length, time }) =>
    length === 1
      ? `    <single_mapping origin_block="${begin}" data_block="${dataBegin}" time="${time}"/>\n`
      : `    <range_mapping origin_begin="${begin}" data_begin="${dataBegin}" ` +
        `length="${length}" time="${time}"/>\n`,
  deviceEnd: '  </device>\n',
  end: '</superblock>\n',
}

const HUMAN: Format = {
  head: ({ time, transactionId, flags, dataBlockSectors, dataSpaceMap }) =>
    `begin superblock: "", ${time}, ${transactionId}, ${flags}, ${SUPERBLOCK_VERSION}, ` +
    `${dataBlockSectors}, ${dataSpaceMap.nrBlocks}\n`,
  device: ({ devId, details }) =>
    `device: ${devId}\nmapped_blocks: ${details.mappedBlocks}\n` +
    `transaction: ${details.transactionId}\ncreation time: ${details.creationTime}\n` +
    `snap time: ${details.snapshottedTime}\n`,
  // The last block of a range is part of it.
  run: ({ begin, dataBegin, length, time }) =>
    length === 1
      ? `    ${begin} -> ${dataBegin}, ${time}\n`
      : `    (${begin}..${begin + length - 1}) -> ` +
        `(${dataBegin}..${dataBegin + length - 1}), ${time}\n`,
  deviceEnd: '\n',
  end: 'end superblock\n',
}

const JSON_FORMAT: Format = {
  head({ time, transactionId, flags, dataBlockSectors, dataSpaceMap }) {
    const head = {
      ...{ time, transactionId, flags, version: SUPERBLOCK_VERSION, dataBlockSectors },
      nrDataBlocks: dataSpaceMap.nrBlocks,
    }
    return `${JSON.stringify(head).slice(0, -1)},"devices":[`
  },
  device({ devId, details }, isFirst) {
    const device = JSON.stringify({ devId, ...details }).slice(0, -1)
    return `${isFirst ? '' : ','}\n${device},"mappings":[`
  },
  run: (run, isFirst) => `${isFirst ? '\n' : ',\n'}${JSON.stringify(run)}`,
  deviceEnd: ']}',
  end: ']}\n',
}

/**
 * Metadata as text, line by line.
 * @param held the block of the metadata snapshot that is to be dumped; null for the metadata itself
 * @throws METADATA_CORRUPT in the middle, where it is damaged
 */
type Dump = (
  metadata: Store,
  held: number | null,
  onProgress?: OnDumpProgress | null,
) => Generator<string>

const dumpAs = (format: Format): Dump =>
  function* (metadata, held, onProgress = null) {
    const view = new MetadataView(metadata)
    const superblock = view.superblock(held)
    const progress = new DumpProgress(view.devices(superblock), onProgress)
    yield format.head(superblock)
    let isFirstDevice = true
    for (const device of view.devices(superblock)) {
      yield format.device(device, isFirstDevice)
      isFirstDevice = false
      let isFirstRun = true
      for (const run of view.runs(device.root)) {
        yield format.run(run, isFirstRun)
        isFirstRun = false
        progress.add(run.length)
      }
      yield format.deviceEnd
    }
    yield format.end
  }

/** As thin_dump prints it. */
export const dumpXml = dumpAs(XML)
/** As thin_dump prints it for people: `-f human_readable`. */
export const dumpHuman = dumpAs(HUMAN)
/** As JSON: sizes are in data blocks, as there. */
export const dumpJson = dumpAs(JSON_FORMAT)

/** The runs of a mapping tree, ascending. @throws METADATA_CORRUPT */
export const mappedRuns = (metadata: Store, root: number): Generator<MappedRun> =>
  new MetadataView(metadata).runs(root)

/** The block of the metadata snapshot that is held. @throws SNAPSHOT_NOT_HELD */
export function heldRootOf(metadata: Store): number {
  const { heldRoot } = new MetadataView(metadata).superblock(null)
  if (heldRoot !== 0) return heldRoot
  throw new ThinfsError('SNAPSHOT_NOT_HELD', `${metadata.path}: it has no metadata snapshot`)
}
