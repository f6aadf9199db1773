import {
  closeSync,
  constants,
  existsSync,
  fstatSync,
  openSync,
  readFileSync,
  statSync,
} from 'node:fs'
import { type FileHandle, link, open, readdir, rename, rm } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import { errnoOf, KIB, type Later, ThinfsError } from '../base/index.js'
import { reserveRoom } from './reserve-room.js'

/** The process that owns a file which several hosts reach, until another host takes it over. */
export interface FileOwner {
  /** Tells its spare files from those of other owners: letters and digits. */
  name: string
  /**
   * Called when the new content is durable, before it takes the place of the old one.
   * @throws what keeps it from that
   */
  mayReplace(): Later<void>
}

/**
 * A small text file that is always replaced as a whole: a reader finds the old content or the new
 * one, after a power cut too.
 */
export class AtomicFile {
  readonly path: string
  readonly #at: string
  readonly #owner: FileOwner | null
  /** Paths of the spare, and of the file while it becomes the spare. */
  readonly #next: string
  readonly #old: string

  /**
   * @param path what messages call it
   * @param at where system calls find it
   * @param owner null for a file that only this host reaches
   */
  constructor(path: string, at = path, owner: FileOwner | null = null) {
    this.path = path
    this.#at = at
    this.#owner = owner
    const spare = owner === null ? at : `${at}.${owner.name}`
    this.#next = `${spare}.new`
    this.#old = `${spare}.old`
  }

  /**
   * The content; null when there is no such file.
   * @param most bytes that it may have
   * @throws BAD_ARGUMENT for a larger one, or what is no regular file
   */
  read(most: number): string | null {
    try {
      const { O_RDONLY, O_NOFOLLOW, O_NONBLOCK } = constants
      const fd = openSync(this.#at, O_RDONLY | O_NOFOLLOW | O_NONBLOCK)
      try {
        const stat = fstatSync(fd)
        if (!stat.isFile()) throw new ThinfsError('BAD_ARGUMENT', 'is not a regular file')
        if (stat.size > most) {
          throw new ThinfsError('BAD_ARGUMENT', `${stat.size} bytes are too many`)
        }
        return readFileSync(fd, 'utf8')
      } finally {
        closeSync(fd)
      }
    } catch (err) {
      if (errnoOf(err) === 'ENOENT') return null
      throw err
    }
  }

  /**
   * Durable when it resolves: spare file, fsync, rename, fsync of the folder. Mode 0600.
   *
   * The spare, PATH.new, is the file before the last change, so that both have room on a full disk;
   * each owner has its own.
   * A link in its place is not followed, nor is content that a crash left there used.
   */
  async replace(content: string | Uint8Array): Promise<void> {
    const bytes = typeof content === 'string' ? Buffer.from(content) : content
    const spare = await this.#openSpare()
    try {
      await writeAll(spare, bytes)
      await spare.truncate(bytes.length)
      // When it is the spare again it will need room.
      reserveRoom(spare.fd, roomFor(bytes.length))
      await spare.sync()
    } finally {
      await spare.close()
    }
    await this.#exchange()
    await syncFolder(this.#at)
    await this.reserve()
  }

  /**
   * Removes the spare files of other owners. An owner that was stopped in the middle of `replace`
   * and goes on later finds nothing that it could put in the file's place.
   * @throws what the file system says
   */
  async dropOtherSpares(): Promise<void> {
    const folder = dirname(this.#at)
    const prefix = `${basename(this.#at)}.`
    for (const name of await readdir(folder)) {
      const path = join(folder, name)
      if (!name.startsWith(prefix) || path === this.#next || path === this.#old) continue
      if (/^(\w+\.)?(new|old)$/.test(name.slice(prefix.length))) await rm(path, { force: true })
    }
  }

  /** Sets room aside, while the disk has some, that `replace` uses when the disk is full. */
  async reserve(): Promise<void> {
    try {
      const size = statSync(this.#at, { throwIfNoEntry: false })?.size ?? 0
      const spare = await this.#openSpare()
      reserveRoom(spare.fd, roomFor(size))
      await spare.close()
    } catch {} // `replace` fails the same way, and reports it
  }

  /** Opens the spare file, whatever its content; makes one where none is ours alone. */
  async #openSpare(): Promise<FileHandle> {
    const { O_RDWR, O_NOFOLLOW } = constants
    const next = this.#next
    // A crash may have left it so.
    if (!existsSync(next)) await rename(this.#old, next).catch(() => {})
    try {
      const spare = await open(next, O_RDWR | O_NOFOLLOW)
      const stat = await spare.stat()
      const isOurs = stat.isFile() && stat.nlink === 1 && stat.uid === process.geteuid!()
      if (isOurs && (stat.mode & 0o7777) === 0o600) return spare
      await spare.close()
    } catch (err) {
      if (!['ENOENT', 'ELOOP'].includes(errnoOf(err))) throw err
    }
    await rm(next, { force: true })
    return await open(next, 'wx', 0o600)
  }

  /** Puts the spare in the file's place, and the file in the spare's. */
  async #exchange(): Promise<void> {
    await rm(this.#old, { force: true })
    const kept = await link(this.#at, this.#old).then(
      () => true,
      () => false, // there is none yet, or the file system has no links
    )
    await this.#owner?.mayReplace()
    await rename(this.#next, this.#at)
    if (kept) await rename(this.#old, this.#next)
  }
}

/**
 * Replaces a file that somebody else has made, once: as `AtomicFile`, but mode and owner stay, and
 * no spare is left.
 */
export async function replaceFile(path: string, content: string): Promise<void> {
  const next = `${path}.new`
  const { mode, uid, gid } = statSync(path)
  await rm(next, { force: true })
  const file = await open(next, 'wx', 0o600)
  try {
    await writeAll(file, Buffer.from(content))
    const made = await file.stat()
    if (made.uid !== uid || made.gid !== gid) await file.chown(uid, gid)
    await file.chmod(mode & 0o7777)
    await file.sync()
    await rename(next, path)
  } catch (err) {
    await rm(next, { force: true })
    throw err
  } finally {
    await file.close()
  }
  await syncFolder(path)
}

/** Bytes set aside for a content of `size`: a change may add as much as there is. */
const roomFor = (size: number): number => 2 * size + 16 * KIB

async function writeAll(file: FileHandle, bytes: Uint8Array): Promise<void> {
  for (let done = 0; done < bytes.length; ) {
    done += (await file.write(bytes, done, bytes.length - done, done)).bytesWritten
  }
}

/** Makes the name of a file durable: fsync of its folder. */
export async function syncFolder(path: string): Promise<void> {
  const folder = await open(dirname(path))
  try {
    await folder.sync()
  } finally {
    await folder.close()
  }
}
