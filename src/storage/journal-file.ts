import { createHash } from 'node:crypto'
import {
  closeSync,
  constants,
  fstatSync,
  fsync,
  fsyncSync,
  ftruncateSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeSync,
} from 'node:fs'
import { dirname } from 'node:path'
import { promisify } from 'node:util'
import { GIB, heldPath, ioError, KIB, ThinfsError } from '../base/index.js'
import { syncFolder } from './atomic-file.js'
import { reserveRoom } from './reserve-room.js'

const fsyncLater = promisify(fsync)
/** It is rewritten at 8 MiB; what comes until a slow flush has ended stays far below this. */
const MAX_FILE_SIZE = GIB
/** Room set aside for what is appended, so that it finds some when the disk is full. */
const ROOM = 256 * KIB
const APPENDING = constants.O_RDWR | constants.O_APPEND

/**
 * A small file that is appended to with plain writes and now and then replaced as a whole.
 *
 * Its content has to be settled, not durable: only `sync` flushes. A reader that finds it empty
 * after a power cut knows less, but nothing wrong.
 */
export class JournalFile {
  readonly path: string
  /** Identifies the running boot of the machine, or what else writes of data last as long as. */
  readonly bootId: string
  /** -1: there is no such file; a reader treats that as an empty one. */
  #fd: number
  readonly #at: string

  private constructor(path: string, at: string, fd: number, cache: string | null) {
    this.path = path
    this.#at = at
    this.#fd = fd
    this.bootId = cache === null ? bootId() : lifeOf(cache)
  }

  /**
   * Opens `path`, which is no link. A missing one reads as an empty one; the first change makes it.
   * @param at where system calls find it
   * @param cache what has the writes of data that nobody has flushed; null: the page cache
   * @throws POOL_MISMATCH when it is no journal, IO_ERROR
   */
  static open(path: string, at = path, cache: string | null = null): JournalFile {
    return JournalFile.#open(path, at, APPENDING, cache)
  }

  /** Opens `path` to be read. @throws as `open` */
  static read(path: string, at = path, cache: string | null = null): JournalFile {
    return JournalFile.#open(path, at, constants.O_RDONLY | constants.O_NONBLOCK, cache)
  }

  static #open(path: string, at: string, flags: number, cache: string | null): JournalFile {
    const isThere = statSync(at, { throwIfNoEntry: false }) !== undefined
    return new JournalFile(path, at, isThere ? openJournal(path, at, flags) : -1, cache)
  }

  /** Whether there is no such file, which a power cut does not leave where there was one. */
  get isMissing(): boolean {
    return this.#fd < 0
  }

  /** @throws POOL_MISMATCH when it is larger than any that thinfs writes */
  readAll(): Buffer {
    if (this.#fd < 0) return Buffer.alloc(0)
    const { size } = fstatSync(this.#fd)
    if (size <= MAX_FILE_SIZE) return readFileSync(heldPath(this.#fd))
    throw new ThinfsError('POOL_MISMATCH', `${this.path}: ${size} bytes are too many`)
  }

  /** @throws IO_ERROR, as all that writes */
  append(bytes: Uint8Array, length: number): void {
    try {
      for (let done = 0; done < length; ) done += writeSync(this.#fd, bytes, done, length - done)
    } catch (err) {
      throw ioError(this.path, err)
    }
  }

  cut(length: number): void {
    if (this.isMissing) this.#make()
    try {
      const { size } = fstatSync(this.#fd)
      if (size > length) ftruncateSync(this.#fd, length)
    } catch (err) {
      throw ioError(this.path, err)
    }
    // Without it all goes on, in more and smaller commits.
    reserveRoom(this.#fd, length + ROOM)
  }

  /**
   * @throws ENOSPC also when there is no room for what would be appended: the old file may have it
   */
  replace(bytes: Uint8Array): void {
    try {
      this.#replace(bytes)
    } catch (err) {
      throw ioError(this.path, err)
    }
  }

  #replace(bytes: Uint8Array): void {
    const next = `${this.#at}.new`
    rmSync(next, { force: true })
    const fd = openSync(next, 'wx', 0o600)
    try {
      for (let done = 0; done < bytes.length; ) done += writeSync(fd, bytes, done)
      if (!reserveRoom(fd, bytes.length + ROOM)) {
        throw Object.assign(new Error('no room for the journal'), { code: 'ENOSPC' })
      }
      renameSync(next, this.#at)
    } catch (err) {
      closeSync(fd)
      rmSync(next, { force: true })
      throw err
    }
    this.close()
    this.#fd = fd
  }

  /** Makes the file, and its name durable: whoever finds none knows that none was ever made. */
  #make(): void {
    this.#fd = openJournal(this.path, this.#at, APPENDING | constants.O_CREAT)
    const folder = openSync(dirname(this.#at), constants.O_RDONLY)
    try {
      fsyncSync(folder)
    } finally {
      closeSync(folder)
    }
  }

  /** fsync of the file and its folder: resolves when a power cut leaves this content. */
  async sync(): Promise<void> {
    await fsyncLater(this.#fd)
    await syncFolder(this.#at)
  }

  close(): void {
    if (this.#fd >= 0) closeSync(this.#fd)
  }
}

/** Identifies the running boot of the machine. Source: proc(5), random/boot_id. */
export const bootId = (): string => readFileSync('/proc/sys/kernel/random/boot_id', 'latin1').trim()

/** Identifies a cache that ends before the boot does, in as many characters. */
const lifeOf = (cache: string): string =>
  createHash('sha256').update(`${bootId()} ${cache}`).digest('hex').slice(0, 36)

/** @throws POOL_MISMATCH, IO_ERROR */
function openJournal(path: string, at: string, flags: number): number {
  const isFile = statSync(at, { throwIfNoEntry: false })?.isFile() ?? true
  if (!isFile) throw new ThinfsError('POOL_MISMATCH', `${path}: is not a regular file`)
  try {
    return openSync(at, flags | constants.O_NOFOLLOW, 0o600)
  } catch (err) {
    throw ioError(path, err)
  }
}
