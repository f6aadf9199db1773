/**
 * Files of a pool that fail: one of all the calls that reach them, or all from one call on.
 *
 * A fault has a number, that of the call at which it strikes, so that a run without faults tells
 * how many there are to try. A write may get part of its bytes there first, in whole sectors. A
 * flush that fails takes with it what it should have flushed, as Linux does: the page cache shows
 * it still, but no later flush makes it durable.
 */
import { type Bytes, bytes, ThinfsError } from '../../src/base/index.js'
import type { JournalFile } from '../../src/pool/index.js'
import type { Store } from '../../src/storage/index.js'
import type { MemoryFiles, MemoryJournal } from './memory-pool.js'
import type { MemoryStore } from './memory-store.js'

const SECTOR = 512

export interface Fault {
  /** The call that fails, counted from 0 over all files. */
  at: number
  errno: 'EIO' | 'ENOSPC' | 'EROFS'
  /**
   * Fails every later call that the errno is about, of the same file or of all, until
   * `Faults.heal`.
   */
  lasts: 'once' | 'for this file' | 'for all files'
  /** Share of a write's or copy's sectors that get there before it fails. */
  share: number
}

type FileName = 'data' | 'metadata' | 'journal'
/** What a call wants: only reads and flushes go well on a full or read-only file system. */
type Kind = 'read' | 'write' | 'flush'

/** Counts the calls and decides which one fails. */
export class Faults {
  fault: Fault | null = null
  /** Every call so far, as "file operation". */
  readonly calls: string[] = []
  /** Faults that struck. */
  injected = 0
  #file: FileName | null = null

  /** Nothing fails any more. */
  heal(): void {
    this.fault = null
  }

  /**
   * Counts a call.
   * @param partly does that share of it, before it fails
   */
  call(file: FileName, operation: string, kind: Kind, partly?: (share: number) => void): void {
    const { fault } = this
    const nr = this.calls.push(`${file} ${operation}`) - 1
    if (!fault || nr < fault.at) return
    if (nr === fault.at) this.#file = file
    else if (fault.lasts === 'once') return
    else if (fault.lasts === 'for this file' && file !== this.#file) return
    else if (fault.errno !== 'EIO' && kind !== 'write') return
    partly?.(fault.share)
    this.injected++
    const message = `${fault.errno}: ${file} ${operation}, call ${nr}`
    throw new ThinfsError('IO_ERROR', message, {
      errno: fault.errno,
      cause: Object.assign(new Error(message), { code: fault.errno }),
    })
  }
}

class FaultyStore implements Store {
  readonly path: string
  readonly punches: boolean
  readonly copiesShare = false
  readonly #store: MemoryStore
  readonly #faults: Faults
  readonly #name: 'data' | 'metadata'

  constructor(store: MemoryStore, name: 'data' | 'metadata', faults: Faults) {
    this.#store = store
    this.#faults = faults
    this.#name = name
    this.path = store.path
    this.punches = store.punches
  }

  get size(): Bytes {
    return this.#store.size
  }

  read(buffer: Uint8Array, at: number, length: number, offset: Bytes): void {
    this.#call('read', 'read')
    this.#store.read(buffer, at, length, offset)
  }

  readNow(buffer: Uint8Array, at: number, length: number, offset: Bytes): boolean {
    this.#call('readNow', 'read')
    return this.#store.readNow(buffer, at, length, offset)
  }

  async readLater(buffer: Uint8Array, at: number, length: number, offset: Bytes): Promise<void> {
    await null
    this.#call('readLater', 'read')
    await this.#store.readLater(buffer, at, length, offset)
  }

  write(buffer: Uint8Array, at: number, length: number, offset: Bytes): void {
    this.#call('write', 'write', share =>
      this.#store.write(buffer, at, sectors(length, share), offset),
    )
    this.#store.write(buffer, at, length, offset)
  }

  copy(source: Bytes, target: Bytes, length: Bytes): void {
    this.#call('copy', 'write', share =>
      this.#store.copy(source, target, bytes(sectors(length, share))),
    )
    this.#store.copy(source, target, length)
  }

  punch(offset: Bytes, length: Bytes): void {
    this.#call('punch', 'write', share => this.#store.punch(offset, bytes(sectors(length, share))))
    this.#store.punch(offset, length)
  }

  async punchLater(offset: Bytes, length: Bytes): Promise<void> {
    await null
    this.#call('punchLater', 'write', share =>
      this.#store.punch(offset, bytes(sectors(length, share))),
    )
    await this.#store.punchLater(offset, length)
  }

  zero(offset: Bytes, length: Bytes): void {
    this.#call('zero', 'write', share => this.#store.zero(offset, bytes(sectors(length, share))))
    this.#store.zero(offset, length)
  }

  nextData(offset: Bytes): Bytes {
    this.#call('nextData', 'read')
    return this.#store.nextData(offset)
  }

  nextHole(offset: Bytes): Bytes {
    this.#call('nextHole', 'read')
    return this.#store.nextHole(offset)
  }

  async sync(): Promise<void> {
    await new Promise(resolve => setImmediate(resolve))
    this.#call('sync', 'flush', () => this.#store.loseUnflushed())
    await this.#store.sync()
  }

  measure(): void {
    this.#store.measure()
  }

  grow(size: Bytes): void {
    this.#call('grow', 'write')
    this.#store.grow(size)
  }

  close(): void {}

  #call(operation: string, kind: Kind, partly?: (share: number) => void): void {
    this.#faults.call(this.#name, operation, kind, partly)
  }
}

class FaultyJournal implements JournalFile {
  readonly bootId: string
  readonly #journal: MemoryJournal
  readonly #faults: Faults

  constructor(journal: MemoryJournal, faults: Faults) {
    this.#journal = journal
    this.#faults = faults
    this.bootId = journal.bootId
  }

  readAll(): Buffer {
    this.#faults.call('journal', 'readAll', 'read')
    return this.#journal.readAll()
  }

  append(content: Uint8Array, length: number): void {
    this.#faults.call('journal', 'append', 'write', share =>
      this.#journal.append(content, Math.floor(length * share)),
    )
    this.#journal.append(content, length)
  }

  cut(length: number): void {
    this.#journal.cut(length)
  }

  replace(content: Uint8Array): void {
    this.#faults.call('journal', 'replace', 'write')
    this.#journal.replace(content)
  }

  async sync(): Promise<void> {
    this.#faults.call('journal', 'sync', 'flush')
    await this.#journal.sync()
  }
}

/** The same files, with `faults` between them and whoever opens them. */
export function faulty(
  { metadata, data, journal }: MemoryFiles,
  faults: Faults,
): { metadata: Store; data: Store; journal: JournalFile } {
  return {
    metadata: new FaultyStore(metadata, 'metadata', faults),
    data: new FaultyStore(data, 'data', faults),
    journal: new FaultyJournal(journal, faults),
  }
}

const sectors = (length: number, share: number): number =>
  Math.min(Math.floor((length * share) / SECTOR) * SECTOR, length)
