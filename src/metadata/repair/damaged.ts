/** Damaged metadata as it is found: its superblock, and the trees that can be known. */
import {
  bytes,
  isDataBlockSize,
  METADATA_BLOCK_SIZE,
  SECTOR_SIZE,
  ThinfsError,
} from '../../base/index.js'
import type { Store } from '../../storage/index.js'
import { Block, SUPERBLOCK_KIND } from '../blocks/block.js'
import type { MetadataBuilder, WrittenTree } from '../build/index.js'
import type { DeviceDetails } from '../device.js'
import {
  MAX_DATA_BLOCKS,
  MAX_TIME,
  SUPERBLOCK,
  SUPERBLOCK_MAGIC,
  SUPERBLOCK_VERSION,
  UUID_SIZE,
} from '../format.js'
import { decodeSuperblock, readSuperblock, type Superblock } from '../superblock.js'
import { devicesOf, type FoundDevices, searchRoots } from './roots.js'
import { type LostRange, SoundNodes } from './sound-nodes.js'

/** The facts of a pool that are known beside its metadata, for a superblock that cannot be read. */
export interface PoolFacts {
  /** Null where it is not known. */
  dataBlockSectors: number | null
  /** Bytes of data that are there. */
  dataSize: number
  /** 16 bytes of the pool's id; null where it is not known. */
  uuid: Buffer | null
  transactionId: number | null
  /** Devices that have names. */
  devIds: ReadonlySet<number> | null
}

/** The parts of damaged metadata that were found, and those that were lost. */
export interface RepairReport {
  /** The damage of the superblock; null if it was used as it is. */
  superblock: string | null
  /** Whether the trees were found by a search of all blocks. */
  searched: boolean
  transactionId: number
  devices: number
  /** A block that two devices share counts twice. */
  mappedBlocks: number
  lost: LostMappings[]
  /** Devices of which not even the mappings' root is known, by ranges of ids [begin, end). */
  lostDevices: LostRange[]
  /** Devices whose details are made up: when they were made is not known. */
  withoutDetails: number[]
}

/** Virtual blocks [begin, end) of a device whose mappings are lost, where it had some. */
export interface LostMappings extends LostRange {
  devId: number
}

/** Progress, by metadata blocks that were looked at. */
export type OnRepairProgress = (done: number, all: number) => void

export class DamagedMetadata {
  readonly nodes: SoundNodes
  readonly found: FoundDevices
  readonly dataBlockSectors: number
  /** Data blocks that the pool has. */
  readonly nrDataBlocks: number
  /** Those that there are: fewer where the data is cut off. */
  readonly nrDataBlocksThere: number
  readonly #facts: PoolFacts
  readonly #superblock: Superblock | null
  readonly #problem: string | null
  readonly #searched: boolean

  /**
   * Finds the trees that the superblock names, unless their roots cannot be read; else those of a
   * search.
   * @throws METADATA_CORRUPT when nothing is found; METADATA_UNSUPPORTED
   */
  constructor(source: Store, facts: PoolFacts, onProgress: OnRepairProgress) {
    const { superblock, problem } = superblockOf(source)
    this.nodes = new SoundNodes(source)
    this.#facts = facts
    this.#superblock = superblock
    this.#problem = problem
    const { found, searched } = this.#find(source, onProgress)
    this.found = found
    this.#searched = searched
    this.dataBlockSectors = this.#blockSize(source.path)
    const said = superblock?.dataSpaceMap.nrBlocks ?? 0
    const there = Math.floor(facts.dataSize / (this.dataBlockSectors * SECTOR_SIZE))
    this.nrDataBlocksThere = there
    this.nrDataBlocks = said > 0 && (problem === null || said <= there) ? said : there
  }

  /**
   * Adds the devices to new metadata, and finishes that.
   * @param time the latest time of a mapping
   * @param nrDataBlocks that the new metadata has
   */
  async finish(
    builder: MetadataBuilder,
    trees: ReadonlyMap<number, WrittenTree>,
    { time: latest, nrDataBlocks }: { time: number; nrDataBlocks: number },
  ): Promise<Omit<RepairReport, 'lost'>> {
    const { details, lostDevices } = this.found
    let time = Math.max(latest, this.#superblock?.time ?? 0)
    for (const { creationTime, snapshottedTime } of details.values()) {
      time = Math.max(time, creationTime, snapshottedTime)
    }
    time = Math.min(time, MAX_TIME)
    const transactionId = this.#transactionId()
    const withoutDetails: number[] = []
    let mappedBlocks = 0
    for (const [devId, tree] of trees) {
      const of = details.get(devId)
      if (of === undefined) withoutDetails.push(devId)
      // With the present time all mappings look shared: nothing of it is written in place.
      const madeUp = { transactionId, creationTime: time, snapshottedTime: time }
      builder.addDevice(devId, tree, of === undefined ? madeUp : within(of, time))
      mappedBlocks += tree.nrEntries
    }
    await builder.finish({
      uuid: this.#superblock?.uuid ?? this.#facts.uuid ?? Buffer.alloc(UUID_SIZE),
      flags: 0,
      time,
      transactionId,
      dataBlockSectors: this.dataBlockSectors,
      nrDataBlocks,
    })
    return {
      superblock: this.#problem,
      searched: this.#searched,
      transactionId,
      devices: trees.size,
      mappedBlocks,
      lostDevices,
      withoutDetails,
    }
  }

  #find(source: Store, onProgress: OnRepairProgress): { found: FoundDevices; searched: boolean } {
    const superblock = this.#superblock
    const named =
      superblock && devicesOf(this.nodes, superblock.mappingRoot, superblock.detailsRoot)
    if (named !== null) {
      const { roots, lostDevices, lostDetails } = named
      // A superblock whose checksum is wrong counts if it leads to all there is.
      const isAll = lostDevices.length === 0 && lostDetails.length === 0
      const isSure = this.#problem === null ? roots.size > 0 || lostDevices.length === 0 : isAll
      if (isSure) return { found: named, searched: false }
    }
    const steps = searchRoots(source, { devIds: this.#facts.devIds, onProgress })
    let step = steps.next()
    while (!step.done) step = steps.next()
    if (step.value !== null) return { found: step.value, searched: true }
    if (named !== null && named.roots.size > 0) return { found: named, searched: false }
    const why = this.#problem ?? 'its root is damaged'
    const what = `${source.path}: no tree of devices can be found; ${why}`
    throw new ThinfsError('METADATA_CORRUPT', what)
  }

  #transactionId(): number {
    const known = this.#superblock?.transactionId ?? this.#facts.transactionId
    if (known !== null && known !== undefined) return known
    let last = 0
    for (const { transactionId } of this.found.details.values()) {
      last = Math.max(last, transactionId)
    }
    return last
  }

  #blockSize(path: string): number {
    const said = this.#superblock?.dataBlockSectors ?? 0
    if (isDataBlockSize(said * SECTOR_SIZE)) return said
    if (this.#facts.dataBlockSectors !== null) return this.#facts.dataBlockSectors
    throw new ThinfsError('METADATA_CORRUPT', `${path}: nothing says how large its data blocks are`)
  }
}

/** The superblock, or what can be read of it, and what is wrong with it. */
function superblockOf(source: Store): { superblock: Superblock | null; problem: string | null } {
  try {
    return { superblock: readSuperblock(source), problem: null }
  } catch (err) {
    // Metadata that a newer program wrote is not damaged.
    if (!(err instanceof ThinfsError) || err.code === 'METADATA_UNSUPPORTED') throw err
    return { superblock: readAnyway(source), problem: err.message }
  }
}

/** A superblock whose checksum or roots are wrong, and which is plausible otherwise. */
function readAnyway(source: Store): Superblock | null {
  const content = Buffer.alloc(METADATA_BLOCK_SIZE)
  if (source.size < content.length) return null
  try {
    source.read(content, 0, content.length, bytes(0))
    const isOne =
      content.readBigUInt64LE(SUPERBLOCK.at.magic) === BigInt(SUPERBLOCK_MAGIC) &&
      content.readUInt32LE(SUPERBLOCK.at.version) === SUPERBLOCK_VERSION
    if (!isOne) return null
    const superblock = decodeSuperblock(new Block(0, SUPERBLOCK_KIND, content))
    return superblock.dataSpaceMap.nrBlocks <= MAX_DATA_BLOCKS ? superblock : null
  } catch (err) {
    if (err instanceof ThinfsError) return null
    throw err
  }
}

function within(details: DeviceDetails, time: number): DeviceDetails {
  const { creationTime, snapshottedTime } = details
  return {
    ...details,
    creationTime: Math.min(creationTime, time),
    snapshottedTime: Math.min(snapshottedTime, time),
  }
}
