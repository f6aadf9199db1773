/**
 * A range of bytes that lasts: what data and metadata are kept in.
 *
 * Reads and writes are whole: they move every byte asked for or throw. They are synchronous where
 * memory answers: a server whose store is the page cache would lose more by waiting for a thread
 * than by the call itself. Calls that wait for a device are asynchronous: `readLater`, `sync`.
 */
import { assert, type Bytes, errnoOf, type Later, MIB, ThinfsError } from '../base/index.js'

/** Space of the file system below a store, in bytes. */
export interface HostRoom {
  /** Free, for files that grow. */
  available: number
  /** Allocated to the store. */
  allocated: number
}

/** The work and the state of the cache before a disk of another machine. */
export interface CacheCounts {
  /** Reads that the cache answered, and those that waited for the disk. */
  hits: number
  misses: number
  /** Bytes that were read ahead: those that somebody asked for, and those that nobody did. */
  aheadUsedBytes: number
  aheadWastedBytes: number
  /** The bytes that were written back. */
  sentBytes: number
  sentRequests: number
  flushes: number
  /** Connections that were made in the place of one that was lost. */
  reconnects: number
  /** Bytes that were acknowledged and that no flush has covered, and how many there may be. */
  dirtyBytes: number
  dirtyLimit: number
  /** The rate at which the disk takes bytes, flushes included; 0: not known. */
  drainBytesPerSecond: number
  /** Writes that wait until less is dirty. */
  writersWaiting: number
}

/** The label that a pool writes on its data: which pool, and which commit. */
export interface Label {
  /** The id in the pool's superblock; null where that has none. */
  pool: string | null
  /** The last durable commit that the data went with. */
  generation: number
}

/**
 * A store of data blocks. A write may take time: a store without a page cache answers with a
 * promise, one with a cache at once. Calls that are under way together may end in any order, and a
 * range that is being written may hold anything: DataBlocks keeps them apart.
 */
export interface DataStore {
  /** Names the store in messages: the file's path. */
  readonly path: string
  /** Current length. */
  readonly size: Bytes
  /** Whether `punch` gives the space back and leaves a hole that `nextData` sees. */
  readonly punches: boolean

  /**
   * Fills `length` bytes of `buffer` at `at` from byte `offset`, but only if no device has to be
   * waited for. Past the end of the store is an error.
   * @returns false when that is not all; what is in `buffer` then means nothing
   */
  readNow(buffer: Uint8Array, at: number, length: number, offset: Bytes): boolean
  /** As `readNow`, off the caller's thread; `buffer` has to stay. */
  readLater(buffer: Uint8Array, at: number, length: number, offset: Bytes): Promise<void>
  /**
   * Writes `length` bytes of `buffer` from `at` to byte `offset`. Never extends the store. A store
   * that answers with a promise has copied the bytes before it returns.
   */
  write(buffer: Uint8Array, at: number, length: number, offset: Bytes): Later<void>
  /** Whether `copy` of whole pages shares them on the host, and so reads nothing. */
  readonly copiesShare: boolean
  /** Copies bytes within the store; the ranges do not overlap. */
  copy(source: Bytes, target: Bytes, length: Bytes): Later<void>
  /**
   * As `copy`, off the caller's thread, for ranges that take long; a store that lacks it is read
   * and written by parts. Resolves when little of what it wrote is left for `sync` to write.
   * @param toHole whether the target is a hole: what is a hole of the source stays one there
   */
  copyLater?(source: Bytes, target: Bytes, length: Bytes, toHole: boolean): Promise<void>
  /**
   * Makes the range a hole where the store can, else zeros: it reads as zeros either way. Any
   * alignment.
   */
  punch(offset: Bytes, length: Bytes): Later<void>
  /** As `punch`, off the caller's thread: for ranges that may take long. */
  punchLater(offset: Bytes, length: Bytes): Promise<void>
  /** Makes the range read as zeros; may keep the space. Any alignment. */
  zero(offset: Bytes, length: Bytes): Later<void>
  /** First byte at or after `offset` that is not in a hole; `size` when there is none. */
  nextData(offset: Bytes): Bytes
  /** First byte at or after `offset` that is in a hole; `size` when there is none. */
  nextHole(offset: Bytes): Bytes
  /**
   * Whether `nextData` knows of each write that has ended, and answers without waiting for a disk.
   * Left out: no.
   */
  readonly tellsHoles?: boolean
  /** fdatasync: resolves when every write that ended before the call is durable. */
  sync(): Promise<void>
  /** The label; null where there is none, or none that is ours. */
  readLabel?(): Label | null
  /**
   * Writes the label; a power cut may bring an earlier one back.
   * @returns false where none can be kept
   */
  writeLabel?(label: Label): boolean
  /** As `sync`, for the label too. */
  syncAll?(): Promise<void>
  /** Space of the host; null where nothing grows, as on a block device. */
  hostRoom?(): HostRoom | null
  /** The counters of the cache before it; left out: it has none of its own. */
  cacheCounts?(): CacheCounts
  /**
   * Whether no name is left of the file, or another file has the name: its content ends with the
   * process.
   */
  readonly isRemoved?: boolean
  /**
   * Takes note of a length that somebody else has changed; what is past the end then is an error.
   */
  measure(): void
  /**
   * As `measure`, and waits for whoever has to be asked; left out: nobody has.
   * @throws IO_ERROR
   */
  remeasure?(): Promise<void>
  /** Extends the store; the new part reads as zeros. Never shrinks. */
  grow(size: Bytes): void
  /** Makes the store shorter; undefined where its length is not its to change. */
  cut?(size: Bytes): void
  close(): void
}

/** A store that memory answers: a call that returns no promise has ended when it returns. */
export interface Store extends DataStore {
  /** Fills `length` bytes of `buffer` at `at` from byte `offset`, and waits for it. */
  read(buffer: Uint8Array, at: number, length: number, offset: Bytes): void
  write(buffer: Uint8Array, at: number, length: number, offset: Bytes): void
  copy(source: Bytes, target: Bytes, length: Bytes): void
  punch(offset: Bytes, length: Bytes): void
  zero(offset: Bytes, length: Bytes): void
  /**
   * Makes the host set space for a range aside, so that writes to it find room. Content stays.
   * @returns false where it cannot do that
   * @throws IO_ERROR, ENOSPC or EDQUOT when it has no room; some of the range may be set aside then
   */
  reserve?(offset: Bytes, length: Bytes): boolean
}

/** The buffer of `copy`, one for all stores: no call leaves anything in it. */
export const SCRATCH = new Uint8Array(MIB)

/** The sentence about a store whose file somebody has removed. */
export const removedFile = (path: string): string =>
  `${path}: was removed, or another file was put in its place; what the pool has there ends with the mount`

/** The failure of a call on a store, unless `cause` is one of that store already. */
export function ioError(path: string, what: string, cause: unknown): ThinfsError {
  if (cause instanceof ThinfsError && cause.message.startsWith(path)) return cause
  const errno = errnoOf(cause)
  return new ThinfsError('IO_ERROR', `${path}: ${what}: ${(cause as Error).message}`, {
    cause,
    // Not an errno: the file ended before the store did.
    errno: errno === 'EOF' ? 'EIO' : errno,
  })
}

/**
 * A store calls it before it touches a range. Only a bug makes a range that is none. A range past
 * the end may come of a damaged block number.
 * @throws IO_ERROR for a range that passes the end
 */
export function mustHaveRange(
  { path, size }: Pick<Store, 'path' | 'size'>,
  what: string,
  offset: number,
  length: number,
): void {
  const end = offset + length
  if (offset >= 0 && length >= 0 && end <= size && Number.isInteger(end)) return
  const detail = `${path}: ${what} of ${length} bytes at ${offset}`
  assert(offset >= 0 && length >= 0 && Number.isInteger(end), detail)
  throw new ThinfsError('IO_ERROR', `${detail}, past the end at ${size}`)
}

/** As `mustHaveRange`, for a copy between two ranges of a store, which must not overlap. */
export function mustCopy(
  store: Pick<Store, 'path' | 'size'>,
  source: number,
  target: number,
  length: number,
): void {
  assert(
    source + length <= target || target + length <= source,
    `${store.path}: copy of ${length} bytes from ${source} to ${target}, which overlap`,
  )
  mustHaveRange(store, 'copy', source, length)
  mustHaveRange(store, 'copy', target, length)
}
