/**
 * The metadata checker: reads everything that the superblock leads to and compares it with what the
 * space maps say.
 *
 * It has a reader of its own, plain and without a cache, because it must not trust the code that it
 * checks. An error means that data is lost or that the next write would lose some, a warning that
 * nothing is: a leak, a statistic that is off, a node with too few entries. The size of the
 * metadata bounds time and memory, whatever the metadata holds: the checker parses a block once, a
 * second pointer to it only looks up what was found, and it counts data blocks only where a bitmap
 * describes them.
 * Source of the rules: docs/FORMAT.md. thin_check 0.9 does not look at data counts, mapped_blocks,
 * data blocks beyond the map, times and key sets; these are checked here as well.
 */
import { SECTOR_SIZE } from '../../base/index.js'
import type { Store } from '../../storage/index.js'
import {
  ENTRIES_PER_BITMAP,
  MAX_DATA_BLOCKS,
  MAX_TIME,
  METADATA_BLOCK_SECTORS,
  SALT,
  SPACE_MAP_ROOT,
  SUPERBLOCK,
  SUPERBLOCK_LOCATION,
  SUPERBLOCK_MAGIC,
  SUPERBLOCK_VERSION,
  UUID_SIZE,
  uuidText,
} from '../format.js'
import { BlockMap, type OnCheckProgress } from './block-map.js'
import { DataCounts } from './data-counts.js'
import { DeviceChecker } from './devices.js'
import { type MetadataProblem, Problems } from './problems.js'
import { type OnLeak, SpaceMapChecker } from './space-maps.js'
import type { Steps } from './steps.js'
import { TreeChecker } from './trees.js'

export interface MetadataReport {
  problems: MetadataProblem[]
  /** Of the superblock; null when that cannot be read. */
  transactionId: number | null
  /** Id of the pool; null where the superblock has none or cannot be read. */
  uuid: string | null
  /** Thin devices of the pool; those of a metadata snapshot are checked but not named. */
  devices: number[]
  /** Bytes of the data blocks that the pool has; null without a readable superblock. */
  dataSize: number | null
  /** Mappings of all devices together: a block that two devices share counts twice. */
  mappedBlocks: number
  /** Blocks whose stored count is not 0. */
  usedDataBlocks: number
  usedMetadataBlocks: number
}

/**
 * Checks the whole of the metadata in `store`, which must not change meanwhile. Writes nothing.
 * @param onLeak is told of each leak, of those that are not listed as well
 */
export function checkMetadata(store: Store, onLeak: OnLeak | null = null): MetadataReport {
  return allOf(new Checker(store, { onLeak }).run())
}

/**
 * Checks the superblock, the roots of all trees that it leads to, and the bitmaps of the metadata's
 * own map; of up to 252 devices the roots of their mapping trees, too. It reads a few hundred
 * blocks at most, whatever the size of the metadata: what is damaged further down is not found.
 */
export function checkRoots(store: Store): MetadataProblem[] {
  return allOf(new Checker(store, { rootsOnly: true }).run()).problems
}

function allOf<T>(steps: Steps<T>): T {
  for (;;) {
    const step = steps.next()
    if (step.done) return step.value
  }
}

/**
 * The same in steps of some milliseconds, so that others have their turn between them. The first
 * step reads the superblock; what that leads to must not change until the last.
 * @param onProgress is told of each metadata block that was read
 */
export function checkMetadataInSteps(
  store: Store,
  onProgress: OnCheckProgress | null = null,
): Steps<MetadataReport> {
  return new Checker(store, { onProgress }).run()
}

type Superblock = ReturnType<typeof SUPERBLOCK.read>

class Checker {
  readonly #problems = new Problems()
  readonly #dataCounts = new DataCounts()
  readonly #blocks: BlockMap
  readonly #maps: SpaceMapChecker
  readonly #devices: DeviceChecker
  readonly #rootsOnly: boolean

  constructor(
    store: Store,
    {
      onLeak = null,
      onProgress = null,
      rootsOnly = false,
    }: { onLeak?: OnLeak | null; onProgress?: OnCheckProgress | null; rootsOnly?: boolean },
  ) {
    this.#rootsOnly = rootsOnly
    this.#blocks = new BlockMap(store, this.#problems, onProgress)
    const trees = new TreeChecker(this.#blocks, this.#problems, rootsOnly)
    this.#maps = new SpaceMapChecker(this.#blocks, trees, this.#dataCounts, this.#problems, onLeak)
    this.#devices = new DeviceChecker(this.#blocks, trees, this.#dataCounts, this.#problems)
  }

  *run(): Steps<MetadataReport> {
    const report: MetadataReport = {
      problems: this.#problems.list,
      transactionId: null,
      uuid: null,
      devices: [],
      dataSize: null,
      mappedBlocks: 0,
      usedDataBlocks: 0,
      usedMetadataBlocks: 0,
    }
    const superblock = this.#readSuperblock(SUPERBLOCK_LOCATION)
    yield
    if (superblock) yield* this.#check(superblock, report)
    this.#problems.finish()
    return report
  }

  *#check(superblock: Superblock, report: MetadataReport): Steps<void> {
    report.transactionId = superblock.transactionId
    const { view, buffer } = this.#blocks.scratch
    const { uuid } = SUPERBLOCK.at
    report.uuid = uuidText(buffer.subarray(uuid, uuid + UUID_SIZE))
    const metadata = SPACE_MAP_ROOT.read(view, SUPERBLOCK.at.metadataSpaceMap)
    const data = SPACE_MAP_ROOT.read(view, SUPERBLOCK.at.dataSpaceMap)
    report.dataSize = data.nrBlocks * superblock.dataBlockSectors * SECTOR_SIZE
    this.#checkFields('superblock', superblock)
    this.#blocks.allocate(metadata)
    if (data.nrBlocks > MAX_DATA_BLOCKS) {
      this.#problems.error(
        `the data map has ${data.nrBlocks} blocks, wanted at most ${MAX_DATA_BLOCKS}`,
      )
      return
    }

    const maps = this.#maps
    const { nrBlocks } = this.#blocks
    // All that is in use is read, and the bitmaps are read again.
    const nrBitmaps = [metadata, data].map(map => Math.ceil(map.nrBlocks / ENTRIES_PER_BITMAP))
    this.#blocks.expect(Math.min(metadata.nrAllocated, nrBlocks) + nrBitmaps[0]! + nrBitmaps[1]!)
    const bitmaps = maps.readIndexBlock(metadata)
    const metadataOverflow = yield* maps.visitOverflow('metadata', metadata.refCountRoot, nrBlocks)
    const dataOverflow = yield* maps.visitOverflow('data', data.refCountRoot, data.nrBlocks)
    const dataIndex = yield* maps.visitDataIndex(data)
    if (this.#rootsOnly) {
      yield* this.#devices.visit('', superblock, superblock, data.nrBlocks)
      return
    }

    Object.assign(report, yield* this.#devices.check('', superblock, superblock, data.nrBlocks))
    yield* this.#checkHeld(superblock, data.nrBlocks)

    report.usedMetadataBlocks = yield* maps.compareCounts('metadata', metadata, bitmaps.entries(), {
      expected: block => this.#blocks.pointers[block] ?? 0,
      overflow: metadataOverflow,
      // thin_restore counts a scratch block in that it has freed: harmless, and in sound images.
      excessAllowed: 1,
    })
    report.usedDataBlocks = yield* maps.compareCounts(
      'data',
      data,
      maps.dataBitmaps(data, dataIndex),
      {
        expected: block => this.#dataCounts.get(block),
        overflow: dataOverflow,
        excessAllowed: 0,
      },
    )
  }

  /** Checks the metadata snapshot, where there is one. */
  *#checkHeld(live: Superblock, nrDataBlocks: number): Steps<void> {
    const held = live.heldRoot
    if (held === 0 || !this.#blocks.point(held, 'metadata snapshot', 'superblock')) return
    const copy = this.#readSuperblock(held)
    if (copy === null) {
      this.#problems.incomplete = true
      return
    }
    this.#checkFields(`metadata snapshot ${held}`, copy)
    yield* this.#devices.check(' of the metadata snapshot', copy, live, nrDataBlocks)
  }

  /**
   * Reads the superblock or the copy that is a metadata snapshot; null when it cannot be trusted.
   */
  #readSuperblock(block: number): Superblock | null {
    const where = block === SUPERBLOCK_LOCATION ? 'superblock' : `metadata snapshot ${block}`
    const { scratch } = this.#blocks
    if (!this.#blocks.read(scratch, block, SALT.superblock, where)) return null
    const superblock = SUPERBLOCK.read(scratch.view, 0)
    const wanted = (field: string, found: number, value: number): boolean => {
      if (found !== value) this.#problems.error(`${where}: ${field} is ${found}, wanted ${value}`)
      return found === value
    }
    return wanted('magic', superblock.magic, SUPERBLOCK_MAGIC) &&
      wanted('version', superblock.version, SUPERBLOCK_VERSION) &&
      wanted('incompat_flags', superblock.incompatFlags, 0)
      ? superblock
      : null
  }

  #checkFields(where: string, superblock: Superblock): void {
    const { dataBlockSectors: size, metadataBlockSectors, compatRoFlags } = superblock
    const { time, transactionId } = superblock
    const error = (what: string): void => this.#problems.error(`${where}: ${what}`)
    // The kernel takes multiples of 128 only; thinfs also makes pools with blocks of 8 to 64.
    if (![8, 16, 32, 64].includes(size) && (size < 128 || size > 2097152 || size % 128 !== 0)) {
      error(`data_block_size is ${size} sectors, wanted a multiple of 128 up to 2097152`)
    }
    if (metadataBlockSectors !== METADATA_BLOCK_SECTORS) {
      error(`metadata_block_size is ${metadataBlockSectors} sectors, wanted 8`)
    }
    if (compatRoFlags !== 0) error(`compat_ro_flags is ${compatRoFlags}, wanted 0`)
    if (time > MAX_TIME) error(`time is ${time}, wanted at most ${MAX_TIME}`)
    if (transactionId > Number.MAX_SAFE_INTEGER) {
      error(`transaction_id is ${transactionId}, wanted below 2^53`)
    }
  }
}
