/**
 * Every error that a disk, the kernel or a user can cause.
 *
 * Callers branch on `code`; the message is for people and names path, block, found and wanted. An
 * error that only our own mistake can cause is an `assert()` (assert.ts). Each code has a heading
 * in docs/OPERATIONS.md that says what to do about it.
 */
export const ERRORS = {
  NO_DATA_SPACE: { errno: 'ENOSPC', what: 'the pool has no free data block' },
  VOLUME_FULL: { errno: 'ENOSPC', what: 'the volume has reached its limit' },
  MIN_FREE_SPACE: { errno: 'ENOSPC', what: 'the pool keeps less free than a new volume needs' },
  NO_METADATA_SPACE: { errno: 'ENOSPC', what: 'the pool has no free metadata block' },
  METADATA_CORRUPT: { errno: 'EIO', what: 'the metadata fails its checks' },
  METADATA_UNSUPPORTED: {
    errno: 'EINVAL',
    what: 'the metadata has features that thinfs does not know',
  },
  METADATA_LIMIT: { errno: 'EOVERFLOW', what: 'a number does not fit its field in the metadata' },
  POOL_MISMATCH: { errno: 'EINVAL', what: 'the files do not fit the pool that is described' },
  POOL_READ_ONLY: { errno: 'EROFS', what: 'the pool is read-only' },
  POOL_FAILED: { errno: 'EIO', what: 'the pool has failed' },
  POOL_SHRINKING: { errno: 'EBUSY', what: 'the pool is being made smaller' },
  LOCK_LOST: { errno: 'EIO', what: 'the lock on the pool is lost' },
  FENCED: { errno: 'EIO', what: 'another host has the pool, or may have it' },
  POOL_IN_USE: { errno: 'EBUSY', what: 'another process has the pool' },
  NOT_A_POOL: { errno: 'EINVAL', what: 'no pool is there' },
  NOT_TRUSTED: { errno: 'EPERM', what: 'others could have changed what the pool is' },
  NOT_MOUNTED: { errno: 'EINVAL', what: 'the pool is not mounted' },
  DEVICE_EXISTS: { errno: 'EEXIST', what: 'the device id is in use' },
  DEVICE_MISSING: { errno: 'ENODATA', what: 'no thin device has the id' },
  DEVICE_BUSY: { errno: 'EBUSY', what: 'the thin device is in use' },
  VOLUME_EXISTS: { errno: 'EEXIST', what: 'a volume has the name' },
  VOLUME_MISSING: { errno: 'ENOENT', what: 'no volume has the name' },
  VOLUME_BUSY: { errno: 'EBUSY', what: 'the volume is in use' },
  ORIGIN_CHANGED: { errno: 'EIO', what: 'the external origin of a volume is missing, or another' },
  HAS_DATA: { errno: 'ENOTEMPTY', what: 'data would be lost' },
  BAD_NAME: { errno: 'EINVAL', what: 'the name is not allowed' },
  BAD_ARGUMENT: { errno: 'EINVAL', what: 'an argument is not allowed' },
  BAD_CONFIG: { errno: 'EINVAL', what: 'pool.yaml is not right' },
  BAD_MESSAGE: { errno: 'EINVAL', what: 'the message is not a thin-pool message' },
  TRANSACTION_MISMATCH: { errno: 'EINVAL', what: 'the transaction id is not the expected one' },
  NO_RECORDING: { errno: 'ENODATA', what: 'the volume has no recording that would do' },
  NO_BASE: { errno: 'ENODATA', what: 'no volume has the content that a stream goes on from' },
  BAD_STREAM: { errno: 'EBADMSG', what: 'the stream is damaged, or cut short, or none' },
  SNAPSHOT_HELD: { errno: 'EBUSY', what: 'a metadata snapshot is held already' },
  SNAPSHOT_NOT_HELD: { errno: 'EINVAL', what: 'no metadata snapshot is held' },
  NOT_SUPPORTED: { errno: 'EOPNOTSUPP', what: 'the operation is not supported' },
  NATIVE_MISSING: { errno: 'ENOENT', what: 'the native addon is not built' },
  IO_ERROR: { errno: 'EIO', what: 'a read or write failed' },
  MOUNT_FAILED: { errno: 'EIO', what: 'the mount failed' },
  MOUNT_BUSY: { errno: 'EBUSY', what: 'the mount is in use' },
  FILE_REMOVED: { errno: 'ENOENT', what: 'a file in use was removed' },
  VERSION_MISMATCH: { errno: 'EPROTO', what: 'another version of thinfs is at the other end' },
  CANCELLED: { errno: 'ECANCELED', what: 'nobody waits for the answer any more' },
  DAEMON_FAILED: { errno: 'EIO', what: 'the daemon failed' },
  TOOL_FAILED: { errno: 'EIO', what: 'a program that thinfs calls failed' },
} as const

export type ErrorCode = keyof typeof ERRORS

/** Characters that end a line or control a terminal. */
const CONTROLS = /[\p{Cc}\u2028\u2029]+/gu

/**
 * An error of the table above. `errno` is the name (`ENOSPC`) that goes with its code. Its message
 * is one line, whatever it quotes.
 */
export class ThinfsError extends Error {
  readonly code: ErrorCode
  readonly errno: string
  /** @param detail what was found and what was wanted; follows the table's sentence */
  constructor(code: ErrorCode, detail: string, options?: { cause?: unknown; errno?: string }) {
    const cause = options?.cause === undefined ? undefined : { cause: options.cause }
    super(detail.replace(CONTROLS, ' '), cause)
    this.name = 'ThinfsError'
    this.code = code
    this.errno = options?.errno ?? ERRORS[code].errno
  }
}

/** The error of a command that a signal ended before its work was done. */
export class EndedBySignal extends ThinfsError {
  readonly signal: NodeJS.Signals
  /** @param detail what was ended */
  constructor(signal: NodeJS.Signals, detail: string) {
    super('CANCELLED', `${detail}: ended by ${signal}`, { errno: 'EINTR' })
    this.signal = signal
  }
}

/**
 * Refuses a system call that we answer in the kernel's place. Callers tell refusals apart by errno.
 */
export const refused = (errno: string, detail: string): ThinfsError =>
  new ThinfsError('BAD_ARGUMENT', detail, { errno })

/** The error of a command on a volume that is not there. */
export const volumeMissing = (name: string, cause?: unknown): ThinfsError =>
  new ThinfsError('VOLUME_MISSING', `${name}: no volume has the name`, { cause })

/** The error of a command on a volume that is there, and has no recording. */
export const noRecording = (name: string): ThinfsError => {
  const how = `thinfs record POOL ${name} begins one`
  return new ThinfsError('NO_RECORDING', `${name}: the volume has no recording; ${how}`)
}

/** The error of a command that a recording which is there is of no use for. */
export const uselessRecording = (name: string, why: string): ThinfsError => {
  const how = 'thinfs record --remove gives it up, then thinfs record begins another'
  return new ThinfsError('NO_RECORDING', `${name}: ${why}; ${how}`)
}

/** The reason of an aborted signal: nobody waits for the work any more. */
export const cancelled = (): ThinfsError =>
  new ThinfsError('CANCELLED', 'nobody waits for the answer any more')

/** The errno name of any error: of a ThinfsError, of a system call's, else `EIO`. */
export function errnoOf(err: unknown): string {
  if (err instanceof ThinfsError) return err.errno
  const code = (err as NodeJS.ErrnoException | null)?.code
  return typeof code === 'string' && /^E[A-Z0-9]+$/.test(code) ? code : 'EIO'
}

/**
 * Whether an error says that the pool may be another process's by now, so that nothing is written.
 */
export const isLost = (err: unknown): err is ThinfsError =>
  err instanceof ThinfsError && (err.code === 'LOCK_LOST' || err.code === 'FENCED')

/** Errors of a path whose file system has no server any more, or none that it reaches. */
const OUT_OF_REACH = new Set([
  ...['ENOTCONN', 'ESTALE', 'EIO', 'ETIMEDOUT', 'ESHUTDOWN', 'ECONNABORTED', 'EREMOTEIO'],
  ...['EHOSTDOWN', 'EHOSTUNREACH', 'ENETDOWN', 'ENETUNREACH'],
])

/** Whether a system call failed because the file system does not answer. */
export const isOutOfReach = (err: unknown): boolean =>
  OUT_OF_REACH.has((err as NodeJS.ErrnoException | null)?.code ?? '')

/** The error of a system call on a file. */
export const ioError = (path: string, cause: unknown): ThinfsError =>
  new ThinfsError('IO_ERROR', `${path}: ${(cause as Error).message}`, {
    cause,
    errno: errnoOf(cause),
  })

/** Whether an error says that the host has no room: its disk is full, or somebody's quota is. */
export function isNoSpace(err: unknown): boolean {
  const errno = errnoOf(err)
  return errno === 'ENOSPC' || errno === 'EDQUOT'
}
