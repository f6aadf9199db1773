/**
 * Opening a pool, up to its first request: judging whether the files fit each other, going on where
 * a dead process ended, and making holes of free blocks.
 */
import { type Bytes, bytes, type DevId, errnoOf, Slice, ThinfsError } from '../base/index.js'
import type { DataBlocks } from '../device/index.js'
import {
  checkMetadata,
  checkMetadataInSteps,
  checkRoots,
  type MetadataProblem,
  type ThinMetadata,
} from '../metadata/index.js'
import type { CommitPipeline } from './commit-pipeline.js'
import type { Journal } from './journal.js'
import type { OpenHandles } from './open-handles.js'
import type { PoolOptions } from './options.js'
import type { PoolState } from './pool-state.js'
import {
  isBehind,
  mayBeNewer,
  mustBeLabelled,
  mustBeSound,
  mustHaveHoles,
  mustHold,
  olderError,
  replayChanges,
} from './recovery.js'
import type { Space } from './space.js'

/** The parts of a pool that is made, and not open yet. */
export interface OpeningParts {
  metadata: ThinMetadata
  blocks: DataBlocks
  space: Space
  journal: Journal
  state: PoolState
  commits: CommitPipeline
  /** Gets the sizes that the journal has. */
  extended: Map<DevId, Bytes>
  /** Gets the handles that the journal has, where this process takes another's place. */
  handles: OpenHandles
}

/**
 * Brings the pool up: in mode write, or in another that the files leave.
 * @param superblock its 4096 bytes as they were read
 * @returns whether the pool began to change its files
 * @throws METADATA_CORRUPT, POOL_MISMATCH, IO_ERROR
 */
export async function bringUp(
  parts: OpeningParts,
  options: PoolOptions,
  superblock: Buffer,
): Promise<boolean> {
  const { metadata, blocks, space, journal, state, commits, extended, handles } = parts
  const { events, metadata: store, readOnly, takesOver, acceptMetadata, dataSize } = options
  // An engine that takes over inherits open files; a person may vouch for them instead.
  const isSure = readOnly || takesOver === true || acceptMetadata === true
  // The failure that set needs_check may have kept the journal from being written.
  const { needsCheck } = metadata
  const found = journal.read(superblock)
  const { known, saysClean, doubtful, older, changes } = found
  // A person who vouches for metadata discards the free blocks that hold data.
  const clean = found.clean && acceptMetadata !== true
  const { label } = blocks
  mustHold(metadata, { metadata: store, data: blocks })
  if (older && !isSure) throw olderError(store.path)
  if (!isSure) mustBeLabelled(label, { state: found, uuid: metadata.uuid }, blocks.path)
  const inDoubt = options.doubtful || (doubtful && !needsCheck) || isBehind(found, label)
  if (readOnly) state.set('read_only', 'opened read-only')
  else if (needsCheck) checkAll(parts, options)
  else if (!known) mustBeSound(store, await problemsOf(options))
  // Users of a mount that goes on are served whatever can still be read.
  else if (!takesOver) mustBeSound(store, checkRoots(store))
  // Metadata that may be an older copy, or another pool's, would cost data: free blocks are
  // punched, or written over. If discards are not passed down there is data in them at any time;
  // then only a label that went on is a reason for doubt.
  const { path } = store
  if (!isSure && inDoubt && (blocks.freeMeansHole || isBehind(found, label))) {
    await mustHaveHoles(metadata, blocks, { path, doubt: 'foreign' })
  } else if (!isSure && blocks.freeMeansHole && mayBeNewer(found, label)) {
    await mustHaveHoles(metadata, blocks, { path, doubt: 'unlabelled' })
  }
  // A disk that has become larger may have anything behind the end of the pool.
  const end = metadata.nrDataBlocks * blocks.blockSize
  const isHole =
    !blocks.freeMeansHole || end >= blocks.size || blocks.nextData(bytes(end)) >= blocks.size
  // Acknowledged writes may be in blocks of a growth that was not committed yet.
  const grewBefore = changes.length > 0 && state.mode === 'write' && space.growToStores()
  if (changes.length > 0) {
    replayChanges(changes, metadata, { extended, handles: takesOver ? handles : null })
  }
  if (state.mode !== 'write') return false
  if (dataSize !== undefined && dataSize > blocks.size) blocks.grow(dataSize)
  const grew = space.growToStores() || grewBefore
  if (!clean || grew) {
    // Writes of a dead process, of the superblock too, may be in the page cache alone. A flush of
    // this process has to cover them, and nothing may be punched that the disk still maps. The new
    // length of the data, too, has to last before the metadata that counts on it.
    await blocks.flushAll()
    await store.sync()
  }
  try {
    const generation = Math.max(found.generation ?? 0, label?.generation ?? 0)
    await commits.start(clean && (isHole || !grew), saysClean, generation)
  } catch (err) {
    events.ioError('open', err)
    if (err instanceof ThinfsError) throw err
    const why = (err as Error).message
    throw new ThinfsError('IO_ERROR', `${store.path}: the journal cannot be written: ${why}`, {
      cause: err,
      errno: errnoOf(err),
    })
  }
  space.data.noteHostLow()
  return true
}

/**
 * Checks all of the metadata, in slices: it may take long, and somebody may be told how far it is.
 */
async function problemsOf({
  metadata,
  clock,
  onCheck = () => {},
}: PoolOptions): Promise<readonly MetadataProblem[]> {
  const steps = checkMetadataInSteps(metadata, onCheck)
  const slice = new Slice(clock)
  let step = steps.next()
  for (; !step.done; step = steps.next()) if (slice.isOver) await slice.yield()
  return step.value.problems
}

/**
 * Clears needs_check when there is nothing wrong, as LVM does when it activates a pool (`thin_check
 * --clear-needs-check-flag`); else the pool stays read-only. A pool that is taken over stays
 * read-only as well: users of the mount have lost changes, and no flush of theirs may succeed.
 */
function checkAll({ metadata, state }: OpeningParts, options: PoolOptions): void {
  if (options.takesOver) {
    const reason = 'needs_check was set while the pool was in use: unmount it'
    state.set('read_only', reason)
    state.lost = new ThinfsError('POOL_READ_ONLY', reason, { errno: 'EIO' })
    return
  }
  const { problems } = checkMetadata(options.metadata)
  const mends = options.mendsLeaks === true
  const problem = problems.find(({ severity }) => severity === 'error' || !mends)
  if (problem !== undefined) {
    state.set('read_only', `needs_check is set: ${problem.message}`)
    return
  }
  metadata.clearNeedsCheck()
  options.events.needsCheckCleared()
}
