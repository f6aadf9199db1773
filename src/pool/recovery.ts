/**
 * Opening a pool and its past: whose metadata it is, the changes that a dead process of this boot
 * left in the journal, and the bytes that a crash left in free blocks.
 */
import {
  allEnded,
  type Bytes,
  bytes,
  type DataBlock,
  type DevId,
  isZero,
  MAX_DEVICE_SIZE,
  METADATA_BLOCK_SIZE,
  MIB,
  SECTOR_SIZE,
  ThinfsError,
} from '../base/index.js'
import type { DataBlocks } from '../device/index.js'
import type { MetadataProblem, ThinMetadata } from '../metadata/index.js'
import type { DataStore, Label, Store } from '../storage/index.js'
import { replay } from './journal-changes.js'
import type { JournalState } from './journal-state.js'
import type { OpenHandles } from './open-handles.js'

/**
 * Refuses metadata that is damaged, as LVM does, which runs thin_check before it activates a pool:
 * a block in use that the space map calls free would be punched, or come to belong to two. Nothing
 * is changed; opened read-only, the pool shows what can be read.
 *
 * It checks all of the metadata only if another program may have written it. Metadata that thinfs
 * wrote was fresh once or has passed this check, and the journal, which outlives the engine and
 * mostly a power cut, names its superblock: then a look at the roots finds what a disk, or a copy
 * of the file, has done to the blocks that everything hangs on. If a power cut took the journal all
 * of it is checked again: that reads every metadata block in use once.
 * @param problems of `checkMetadata` or `checkRoots`
 * @throws METADATA_CORRUPT
 */
export function mustBeSound(store: Store, problems: readonly MetadataProblem[]): void {
  const errors = problems.filter(({ severity }) => severity === 'error')
  if (errors.length === 0) return
  const more = errors.length > 1 ? ` (the first of ${errors.length} errors)` : ''
  throw new ThinfsError('METADATA_CORRUPT', `${store.path}: ${errors[0]!.message}${more}`)
}

/** @throws POOL_MISMATCH when the stores are smaller than the metadata says */
export function mustHold(
  pool: ThinMetadata,
  stores: { metadata: Store; data: Pick<DataStore, 'path' | 'size'> },
): void {
  const must = (
    store: Pick<DataStore, 'path' | 'size'>,
    blockSize: number,
    wanted: number,
  ): void => {
    const found = Math.floor(store.size / blockSize)
    if (found >= wanted) return
    const detail = `${store.path}: ${found} blocks, the pool has ${wanted}: the rest of it is missing`
    throw new ThinfsError('POOL_MISMATCH', detail)
  }
  must(stores.data, blockSizeOf(pool), pool.nrDataBlocks)
  must(stores.metadata, METADATA_BLOCK_SIZE, pool.nrMetadataBlocks)
}

/** The data as far as it is looked at: of a pool that is being opened, or a store. */
type DataToRead = Pick<DataStore, 'size' | 'nextData' | 'nextHole' | 'readNow' | 'readLater'>

/** More free blocks that hold something are not counted. */
const MAX_COUNTED = 1000

/** Errors of a replay that do not mean that the journal is of other metadata. */
const TELLS_NOTHING_OF_THE_JOURNAL: ReadonlySet<string> = new Set(['IO_ERROR', 'NO_METADATA_SPACE'])

/** Facts in a journal beside mappings. */
export interface Noted {
  /** Sizes that devices were given. */
  extended: Map<DevId, Bytes>
  /** Handles that have devices open; null when none of them can be left. */
  handles: OpenHandles | null
}

/** For metadata that a durable change of devices or names is missing from. Nothing is changed. */
export const olderError = (path: string): ThinfsError =>
  new ThinfsError(
    'POOL_MISMATCH',
    `${path}: the journal knows newer metadata: this is an older copy. Put the right metadata back; ` +
      'or mount with --accept-metadata, which discards what this one does not have',
  )

/** Whether metadata and journal are from before the last commit that the data went with. */
export const isBehind = ({ generation }: JournalState, label: Label | null): boolean =>
  generation !== null && label !== null && label.generation > generation

/**
 * Refuses data of another pool, and data from before a commit that it went with. Nothing is
 * changed.
 * @param label of the data; null says nothing
 * @param path of the data
 * @throws POOL_MISMATCH
 */
export function mustBeLabelled(
  label: Label | null,
  { state, uuid }: { state: JournalState; uuid: string | null },
  path: string,
): void {
  if (label === null) return
  const { pool, generation } = label
  if (pool !== null && uuid !== null && pool !== uuid) {
    throw mismatch(`${path}: of the pool ${pool}, the metadata is of ${uuid}`)
  }
  if (generation < state.labelled) {
    const both = `as of commit ${generation}, the journal knows commit ${state.labelled}`
    throw mismatch(`${path}: ${both}: this is an older copy`)
  }

  function mismatch(what: string): ThinfsError {
    const cure =
      'put the files back that belong together; or, where they do, mount with --accept-metadata'
    return new ThinfsError('POOL_MISMATCH', `${what}; ${cure}`)
  }
}

/**
 * Makes the changes of a journal again.
 * @throws POOL_MISMATCH when they cannot be made to this pool, NO_METADATA_SPACE when there is no
 *   room for them; nothing may be committed then
 */
export function replayChanges(
  changes: readonly Buffer[],
  metadata: ThinMetadata,
  noted: Noted,
): void {
  try {
    replayAll(changes, metadata, noted)
  } catch (err) {
    const fits = !(err instanceof ThinfsError) || TELLS_NOTHING_OF_THE_JOURNAL.has(err.code)
    if (fits) throw err
    const detail = `the journal does not fit the metadata: ${err.message}`
    throw new ThinfsError('POOL_MISMATCH', detail, { cause: err })
  }
}

function replayAll(
  changes: readonly Buffer[],
  metadata: ThinMetadata,
  { extended, handles }: Noted,
): void {
  const blockSize = blockSizeOf(metadata)
  const mustFit = (what: string, size: number): void => {
    if (size <= MAX_DEVICE_SIZE) return
    throw new ThinfsError('POOL_MISMATCH', `${what}: devices end at ${MAX_DEVICE_SIZE} bytes`)
  }
  let shares = false
  let movedTo: { from: DataBlock; to: DataBlock } | null = null
  const found = { dataBlock: 0 as DataBlock, time: 0 }
  replay(changes, {
    map(devId, vblock, dataBlock, time) {
      // Nobody has seen a device that was made in a lost transaction.
      if (!metadata.hasDevice(devId)) return
      mustFit(`block ${vblock} of device ${devId}`, vblock * blockSize)
      const same = metadata.mappings.find(devId, vblock, found) && found.dataBlock === dataBlock
      if (!same && metadata.dataCount(dataBlock) > 0) {
        shares = true
        metadata.incData(dataBlock)
      } else if (!same) metadata.allocateDataAt(dataBlock)
      metadata.mappings.insert(devId, vblock, dataBlock, Math.min(time, metadata.time))
    },
    unmap(devId, begin, end) {
      if (metadata.hasDevice(devId)) metadata.mappings.removeRange(devId, begin, end)
    },
    markShared(one, other) {
      const ids = one === other ? [one] : [one, other]
      if (ids.every(id => metadata.hasDevice(id))) metadata.markShared(ids)
    },
    extend(devId, size) {
      mustFit(`device ${devId} of ${size} bytes`, size)
      if (metadata.hasDevice(devId)) extended.set(devId, size)
    },
    open(devId, handle) {
      if (metadata.hasDevice(devId)) handles?.add(devId, handle)
    },
    close: (devId, handle) => handles?.drop(devId, handle),
    move(vblock, from, to) {
      // A block that several virtual blocks were mapped to has a change for each.
      const isMoved = movedTo !== null && movedTo.from === from && movedTo.to === to
      if (!isMoved && metadata.dataCount(to) > 0) {
        throw new ThinfsError('POOL_MISMATCH', `data block ${to} was to be free, and has an owner`)
      }
      movedTo = { from, to }
      metadata.relocation.moveAgain(vblock, from, to)
    },
  })
  // A snapshot that was lost may have been why a shared block looked shared.
  if (shares) metadata.markShared([...metadata.deviceIds()])
}

/**
 * Why metadata is in doubt whose free blocks hold data: what is odd, what it may be, what to put
 * back.
 */
const DOUBTS = {
  /**
   * The journal does not know the superblock, though it should; or it does not know of commits that
   * the data went with; or the metadata has no id.
   */
  foreign: [
    'it is not what thinfs left beside them: it may be an older copy, or of another pool',
    'the right metadata',
  ],
  /**
   * The journal says that the pool was closed in order, which leaves no such block; and the data
   * has no label to tell whether it is that data.
   */
  unlabelled: [
    'the pool was closed without any: metadata, volumes.json and journal may be an older copy, beside ' +
      'data that was copied without its extended attributes',
    'those that belong together',
  ],
} as const

/**
 * Refuses metadata that may be older than the data, or of another pool: what it calls free would be
 * punched, or shown to whoever gets the block next.
 * @throws POOL_MISMATCH when free blocks have something in them; nothing is changed
 */
export async function mustHaveHoles(
  metadata: ThinMetadata,
  blocks: DataToRead,
  { path, doubt }: { path: string; doubt: keyof typeof DOUBTS },
): Promise<void> {
  const count = await countHolding(metadata, blocks, doubt === 'foreign')
  if (count === 0) return
  const most = count > MAX_COUNTED ? `more than ${MAX_COUNTED}` : `${count}`
  const which = count === 1 ? 'a data block' : `${most} data blocks`
  const [what, right] = DOUBTS[doubt]
  throw new ThinfsError(
    'POOL_MISMATCH',
    `${path}: ${which} that it calls free hold data, and ${what}. Put ${right} back; or, where it is ` +
      'right, mount with --accept-metadata, which discards those blocks',
  )
}

/**
 * Whether data without a label may be newer than the metadata: what of a pool that was closed in
 * order is left of a copy has no block that is free and holds something, and so no doubt comes of
 * it.
 */
export const mayBeNewer = ({ clean }: JournalState, label: Label | null): boolean =>
  clean && label === null

/**
 * How many free blocks hold data. Blocks of zeros do not count: a copy has them in the place of
 * holes. Stops counting above MAX_COUNTED.
 * @param pastEnd counts those behind the end of the pool, too: it becomes as large as its data
 */
async function countHolding(
  metadata: ThinMetadata,
  blocks: DataToRead,
  pastEnd: boolean,
): Promise<number> {
  const ranges: [from: number, to: number][] = []
  const add = (from: number, to: number): unknown => ranges.push([from, to])
  forEachFreeData(metadata, blocks, add)
  const blockSize = blockSizeOf(metadata)
  const end = metadata.nrDataBlocks * blockSize
  if (pastEnd) forEachData(blocks, end, blocks.size - (blocks.size % blockSize), add)
  const buffer = Buffer.allocUnsafe(Math.min(blockSize, MIB))
  let count = 0
  let last = -1
  for (const [from, to] of ranges) {
    for (let at = from, next = from; at < to && count <= MAX_COUNTED; at = next) {
      const block = Math.floor(at / blockSize)
      next = Math.min((block + 1) * blockSize, to, at + buffer.length)
      if (block === last) continue
      const length = next - at
      const offset = bytes(at)
      if (!blocks.readNow(buffer, 0, length, offset)) {
        await blocks.readLater(buffer, 0, length, offset)
      }
      if (isZero(buffer, length)) continue
      last = block
      count++
    }
  }
  return count
}

/**
 * Makes holes of the free blocks that a crash, or another program, left with something in them.
 * @returns null when that is done, else a promise
 */
export function clearFree(metadata: ThinMetadata, blocks: DataBlocks): Promise<void> | null {
  return cleared(blocks, clear => forEachFreeData(metadata, blocks, clear))
}

/** The same of bytes [begin, end), which no block that has an owner is in. */
export function clearRange(blocks: DataBlocks, begin: number, end: number): Promise<void> | null {
  return cleared(blocks, clear => forEachData(blocks, begin, end, clear))
}

function cleared(
  blocks: DataBlocks,
  forEach: (clear: (from: Bytes, to: Bytes) => void) => void,
): Promise<void> | null {
  const begun: Promise<void>[] = []
  forEach((from, to) => {
    const clearing = blocks.clear(from, to - from)
    if (clearing !== undefined) begun.push(clearing)
  })
  return begun.length === 0 ? null : allEnded(begun)
}

/** Calls `use` with the bytes [from, to) of free blocks that are not holes, ascending. */
function forEachFreeData(
  metadata: ThinMetadata,
  blocks: DataToRead,
  use: (from: Bytes, to: Bytes) => void,
): void {
  const blockSize = blockSizeOf(metadata)
  metadata.forEachFreeRun((first, last) =>
    forEachData(blocks, first * blockSize, last * blockSize, use),
  )
}

/** The same of [begin, end). */
function forEachData(
  blocks: DataToRead,
  begin: number,
  end: number,
  use: (from: Bytes, to: Bytes) => void,
): void {
  if (begin >= end) return
  for (let from = blocks.nextData(bytes(begin)); from < end; ) {
    const to = bytes(Math.min(blocks.nextHole(from), end))
    use(from, to)
    from = to < end ? blocks.nextData(to) : to
  }
}

const blockSizeOf = (metadata: ThinMetadata): number => metadata.dataBlockSectors * SECTOR_SIZE
