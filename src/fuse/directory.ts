/**
 * READDIR and READDIRPLUS: the root's entries, page by page.
 *
 * Entries go out in the order of their inode numbers, and the cookie of each is its inode number
 * plus one (`.` has 1, `..` has 2). So a cookie stays right whatever comes and goes, also when
 * another process has taken over the connection and the list was made anew.
 */

import type { Later } from '../base/index.js'
import { DIRENT, ENTRY_OUT, FUSE_ROOT_ID } from './abi.js'
import { writeEntry } from './encode.js'
import type { Attributes, DirectoryEntry, FileSystem } from './file-system.js'
import { later } from './later.js'
import type { Slots } from './slots.js'

const DIRECTORY = 0o040000
/** A mode divided by it is a directory entry's type. */
const TYPE_UNIT = 0o10000
const DOT_COOKIE = 1
const DOT_DOT_COOKIE = 2

type Names = readonly { name: string; ino: number; mode: number }[]

/**
 * The lists of the directories that are open, each as it was when it was read from its beginning.
 */
export class DirectoryStreams {
  readonly #fileSystem: FileSystem
  readonly #names = new Map<number, Names>()
  #lastHandle = 0

  constructor(fileSystem: FileSystem) {
    this.#fileSystem = fileSystem
  }

  /**
   * A file handle for a stream. One of an earlier process may be the same: both then share a list.
   */
  open(): number {
    return ++this.#lastHandle
  }

  close(fh: number): void {
    this.#names.delete(fh)
  }

  /** The list behind `fh`, read anew at the beginning (rewinddir) or when it is not known here. */
  names(ino: number, fh: number, cookie: number): Later<Names> {
    const known = cookie === 0 ? undefined : this.#names.get(fh)
    if (known !== undefined) return known
    return later(this.#fileSystem.readdir(ino), entries => {
      const names = entries.map(toName).sort((a, b) => a.ino - b.ino)
      this.#names.set(fh, names)
      return names
    })
  }

  /**
   * Writes the entries behind `cookie` that fit `size` bytes as the reply's payload. Returns its
   * bytes.
   * @param plus each with what LOOKUP answers
   */
  encode(
    slots: Slots,
    base: number,
    names: Names,
    { cookie, size, plus }: { cookie: number; size: number; plus: boolean },
  ): number {
    const begin = base + slots.payload
    const page = { slots, at: begin, end: begin + size, plus }
    if (cookie < DOT_COOKIE && !writeDirent(page, '.', FUSE_ROOT_ID, DIRECTORY, DOT_COOKIE, null))
      return page.at - begin
    if (
      cookie < DOT_DOT_COOKIE &&
      !writeDirent(page, '..', FUSE_ROOT_ID, DIRECTORY, DOT_DOT_COOKIE, null)
    )
      return page.at - begin
    for (let i = firstBehind(names, cookie); i < names.length; i++) {
      const { name, ino, mode } = names[i]!
      const attributes = plus ? this.#attributesNow(ino) : null
      if (!writeDirent(page, name, ino, mode, ino + 1, attributes)) break
    }
    return page.at - begin
  }

  /**
   * Attributes of a file that the kernel may rely on: not those of the list, for it would set
   * a file that has grown meanwhile back to its old size. Null: it has to look the name up.
   */
  #attributesNow(ino: number): Attributes | null {
    try {
      const attributes = this.#fileSystem.getattr(ino)
      if (!(attributes instanceof Promise)) return attributes
      attributes.catch(() => {})
    } catch {
      // Removed since the list was made.
    }
    return null
  }
}

function toName({ name, attributes }: DirectoryEntry): Names[number] {
  return { name, ino: attributes.ino, mode: attributes.mode }
}

/** Index of the first of `names` whose cookie is greater than `cookie`. */
function firstBehind(names: Names, cookie: number): number {
  let low = 0
  let high = names.length
  while (low < high) {
    const mid = (low + high) >>> 1
    if (names[mid]!.ino + 1 > cookie) high = mid
    else low = mid + 1
  }
  return low
}

/** Adds one entry to the page, if it fits. With `plus` and no attributes the kernel looks it up. */
function writeDirent(
  page: { slots: Slots; at: number; end: number; plus: boolean },
  name: string,
  ino: number,
  mode: number,
  cookie: number,
  attributes: Attributes | null,
): boolean {
  const { slots, plus } = page
  const dirent = page.at + (plus ? ENTRY_OUT.size : 0)
  const nameLength = Buffer.byteLength(name)
  const nameAt = dirent + DIRENT.size
  const next = dirent + Math.ceil((DIRENT.size + nameLength) / 8) * 8
  if (next > page.end) return false
  if (attributes !== null) writeEntry(slots, page.at, attributes)
  else slots.buffer.fill(0, page.at, dirent)
  slots.setU64(dirent + DIRENT.at.ino, ino)
  slots.setU64(dirent + DIRENT.at.off, cookie)
  slots.setU32(dirent + DIRENT.at.namelen, nameLength)
  slots.setU32(dirent + DIRENT.at.type, mode / TYPE_UNIT)
  slots.buffer.write(name, nameAt)
  slots.buffer.fill(0, nameAt + nameLength, next)
  page.at = next
  return true
}
