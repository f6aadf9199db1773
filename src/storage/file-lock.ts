import { closeSync, constants, fstatSync, openSync, readFileSync, statSync } from 'node:fs'
import { deviceNumber } from '../base/index.js'
import { native } from '../native.js'
import { ioError } from './store.js'

/**
 * Ranges to lock: what is before QEMU's bytes, and those of them that forbid others to write, and
 * to resize. Source: block/file-posix.c, RAW_LOCK_SHARED_BASE; include/block/block-common.h,
 * BLK_PERM_WRITE.
 */
const IMAGE_LOCKS: readonly (readonly [offset: number, length: number])[] = [
  [0, 100],
  [201, 1],
  [203, 1],
]

/**
 * Locks on a file or device that is open, against other programs that want the same bytes.
 *
 * A lock is that of the open file: it is inherited with the descriptor and lasts until the last
 * copy is closed. Source: fcntl(2), "Open file description locks".
 */
export class FileLock {
  readonly #fd: number
  /** Names the file in messages. */
  readonly #path: string
  readonly #readOnly: boolean
  /** The file behind a loop device, which is locked with it. */
  #behind: number | null = null

  constructor(fd: number, path: string, readOnly: boolean) {
    this.#fd = fd
    this.#path = path
    this.#readOnly = readOnly
  }

  /** See `FileStore.lock`. */
  take(): boolean {
    return this.#attempt(() => native.file_lock(this.#fd, !this.#readOnly) && this.#takeBehind())
  }

  /** See `FileStore.holdsLock`. */
  isHeld(): boolean {
    return this.#attempt(() => {
      const isExclusive = !this.#readOnly
      if (!native.file_lock(this.#fd, isExclusive)) return false
      return this.#behind === null || native.file_lock(this.#behind, isExclusive)
    })
  }

  /** See `FileStore.lockAsImage`. */
  takeAsImage(): boolean {
    return this.#attempt(() =>
      IMAGE_LOCKS.every(([at, length]) => native.file_lock_range(this.#fd, false, at, length)),
    )
  }

  #attempt(lock: () => boolean): boolean {
    try {
      return lock()
    } catch (err) {
      throw ioError(this.#path, 'lock', err)
    }
  }

  #takeBehind(): boolean {
    const stat = fstatSync(this.#fd)
    const path = stat.isBlockDevice() ? fileBehind(stat.rdev) : null
    if (path === null) return true
    try {
      this.#behind ??= openSync(path, this.#readOnly ? constants.O_RDONLY : constants.O_RDWR)
    } catch {
      return true // Nobody else can open it by that name either.
    }
    return native.file_lock(this.#behind, !this.#readOnly)
  }

  /** Lets go of the file behind a loop device. The lock of the other goes with its descriptor. */
  close(): void {
    if (this.#behind !== null) closeSync(this.#behind)
  }
}

/** The regular file that a loop device shows, by its device number; null for any other device. */
function fileBehind(rdev: number): string | null {
  try {
    const link = `/sys/dev/block/${deviceNumber(rdev)}/loop/backing_file`
    const path = readFileSync(link, 'utf8').trimEnd()
    return statSync(path).isFile() ? path : null
  } catch {
    return null
  }
}
