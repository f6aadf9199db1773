import { createHash } from 'node:crypto'
import { fstatSync, readSync, writeSync } from 'node:fs'
import { GIB, ioError, layout, PAGE_SIZE, ThinfsError } from '../base/index.js'
import { native } from '../native.js'
import { bootId } from './journal-file.js'

/** Two places for the content: one is filled while the other counts. */
const AREA = GIB
const areaAt = (area: number): number => PAGE_SIZE + area * AREA
const HEADER = layout('MemoryJournal', 12, {
  area: [0, 'u32', 'the area that counts: 0, 1'],
  length0: [4, 'u32', 'bytes of area 0 that are the journal'],
  length1: [8, 'u32', 'the same of area 1'],
})
const { area: AREA_AT, length0: LENGTHS_AT } = HEADER.at

const NOTHING = new Uint8Array()

/** The place of what is known of a pool between two mounts. */
export interface JournalKeeper {
  /** What was kept last; empty where that cannot be read, null where nothing ever was. */
  readonly journal: Buffer | null
  /** Durable when it resolves. */
  keepJournal(content: Uint8Array): Promise<void>
  /** Bytes that it takes. */
  readonly journalMax: number
}

/**
 * A journal in memory that outlives the process, and not the mount: of a pool that another machine
 * has. Its beginning and its end are kept with the pool: what an orderly shutdown leaves is true
 * for every host, and what comes in between is for the next process of the mount alone.
 *
 * It is as JournalFile. The header changes last: a process that is killed before has appended, or
 * replaced, nothing.
 */
export class MemoryJournal {
  readonly path: string
  readonly bootId: string
  /**
   * Whether nothing was kept of an earlier mount: the pool is new, or its metadata was replaced.
   */
  readonly isMissing: boolean
  readonly #fd: number
  readonly #keeper: JournalKeeper | null
  readonly #header: DataView

  /** Makes such memory, empty. @returns the descriptor */
  static create(): number {
    return native.memory_create('thinfs-journal', areaAt(2))
  }

  /**
   * @param fd of `create`, which stays the caller's. The first to use it begins with what was kept
   */
  constructor(fd: number, keeper: JournalKeeper | null = null) {
    this.path = 'the journal in memory'
    this.#fd = fd
    this.#keeper = keeper
    this.isMissing = keeper?.journal === null
    this.#header = new DataView(native.memory_map(fd, 0, PAGE_SIZE))
    const { dev, ino } = fstatSync(fd)
    // In as many characters as the id of a boot.
    const life = createHash('sha256').update(`${bootId()} ${dev} ${ino}`).digest('hex')
    this.bootId = life.slice(0, 36)
    const isNew = this.#lengthOf(0) === 0 && this.#lengthOf(1) === 0
    if (isNew && keeper?.journal) this.replace(keeper.journal)
  }

  readAll(): Buffer {
    const area = this.#area
    const content = Buffer.alloc(this.#lengthOf(area))
    for (let done = 0; done < content.length; ) {
      done += readSync(this.#fd, content, done, content.length - done, areaAt(area) + done)
    }
    return content
  }

  /** @throws IO_ERROR, ENOSPC, as all that writes */
  append(bytes: Uint8Array, length: number): void {
    const area = this.#area
    const before = this.#lengthOf(area)
    this.#write(area, before, bytes, length)
    this.#setLength(area, before + length)
  }

  cut(length: number): void {
    const area = this.#area
    if (this.#lengthOf(area) > length) this.#setLength(area, length)
  }

  replace(bytes: Uint8Array): void {
    const area = 1 - this.#area
    this.#write(area, 0, bytes, bytes.length)
    this.#setLength(area, bytes.length)
    this.#header.setUint32(AREA_AT, area, true)
  }

  /**
   * Keeps it for the next mount. A journal that is too long leaves an empty one there: the pool may
   * have been closed in order before, and that is not so any more.
   */
  async sync(): Promise<void> {
    if (this.#keeper === null) return
    const content = this.readAll()
    await this.#keeper.keepJournal(content.length > this.#keeper.journalMax ? NOTHING : content)
  }

  close(): void {}

  get #area(): number {
    return this.#header.getUint32(AREA_AT, true)
  }

  #lengthOf(area: number): number {
    return this.#header.getUint32(LENGTHS_AT + 4 * area, true)
  }

  #setLength(area: number, length: number): void {
    this.#header.setUint32(LENGTHS_AT + 4 * area, length, true)
  }

  #write(area: number, at: number, bytes: Uint8Array, length: number): void {
    if (at + length > AREA) {
      throw new ThinfsError('IO_ERROR', `${this.path}: it is full`, { errno: 'ENOSPC' })
    }
    try {
      for (let done = 0; done < length; ) {
        done += writeSync(this.#fd, bytes, done, length - done, areaAt(area) + at + done)
      }
    } catch (err) {
      throw ioError(this.path, err)
    }
  }
}
