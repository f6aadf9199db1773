/**
 * The files of a pool on a disk that keeps a record: every write, punch, growth, replacement and
 * flush, in one timeline, so that power-states.ts can tell what a power cut would have left.
 *
 * What is written is there for readers at once, as in the page cache. Who kills the process that
 * uses the files takes its handles away; the next one finds what was written, flushed or not.
 */

import { type Bytes, bytes, ThinfsError } from '../../src/base/index.js'
import type { JournalFile } from '../../src/pool/index.js'
import type { Label, Store } from '../../src/storage/index.js'
import type { TableFile } from '../../src/volumes/volume-table.js'
import type { Random } from './random.js'

export const SECTOR = 512
export const PAGE = 4096

export type BlockFile = 'data' | 'metadata'

/** One thing that happened. A flush promises what came before the event number `covers`. */
export type PowerEvent =
  | { kind: 'write'; file: BlockFile; offset: number; content: Buffer }
  | { kind: 'punch'; file: BlockFile; offset: number; length: number }
  | { kind: 'grow'; file: BlockFile; size: number }
  | { kind: 'cut'; file: BlockFile; size: number }
  | { kind: 'append'; file: 'journal'; content: Buffer }
  | { kind: 'replace'; file: 'journal'; content: Buffer }
  | { kind: 'replace'; file: 'table'; content: string }
  | { kind: 'label'; file: 'label'; label: Label }
  | { kind: 'flush'; file: FlushedFile; covers: number }

/** What is flushed by itself. The label of the data goes with the data, or not. */
type FlushedFile = BlockFile | 'journal' | 'table' | 'label'

/** Bytes of a file, and which of its pages are no holes. */
export class SparseImage {
  bytes: Buffer
  pages: Uint8Array

  constructor(content: Buffer, pages = new Uint8Array(Math.ceil(content.length / PAGE)).fill(1)) {
    this.bytes = content
    this.pages = pages
  }

  static ofHoles(size: number): SparseImage {
    return new SparseImage(Buffer.alloc(size), new Uint8Array(Math.ceil(size / PAGE)))
  }

  copy(): SparseImage {
    return new SparseImage(Buffer.from(this.bytes), Uint8Array.from(this.pages))
  }

  write(content: Buffer, offset: number): void {
    content.copy(this.bytes, offset)
    this.pages.fill(1, Math.floor(offset / PAGE), Math.ceil((offset + content.length) / PAGE))
  }

  punch(offset: number, length: number): void {
    this.bytes.fill(0, offset, offset + length)
    const first = Math.ceil(offset / PAGE)
    const end = Math.floor((offset + length) / PAGE)
    if (first < end) this.pages.fill(0, first, end)
  }

  grow(size: number): void {
    if (size <= this.bytes.length) return
    this.bytes = Buffer.concat([this.bytes, Buffer.alloc(size - this.bytes.length)])
    const pages = new Uint8Array(Math.ceil(size / PAGE))
    pages.set(this.pages)
    this.pages = pages
  }

  cut(size: number): void {
    this.bytes = Buffer.from(this.bytes.subarray(0, size))
    this.pages = this.pages.slice(0, Math.ceil(size / PAGE))
  }
}

/** What is in the files of a pool at one moment; all of it durable. */
export interface DiskState {
  data: SparseImage
  metadata: SparseImage
  journal: Buffer
  /** volumes.json; null when there is no such file. */
  table: string | null
  /** Of the data; null when there is none. */
  label: Label | null
  /** Which boot of the machine comes next. */
  boot: number
}

/** The files as one process has them. */
export interface Handles {
  /** False from when the process was killed. */
  alive: () => boolean
  data: PowerStore
  metadata: PowerStore
  journal: JournalFile
  table: TableFile
}

/** What a process runs into that was killed. */
export class Killed extends Error {}

export class PowerDisk {
  readonly start: DiskState
  readonly events: PowerEvent[] = []
  readonly random: Random
  /** Resolves when the process that has the handles is killed. */
  death: Promise<'killed'> = Promise.resolve('killed')
  /** What readers find. */
  readonly now: DiskState
  #process = 0
  #dies: (value: 'killed') => void = () => {}
  /** Events until the process is killed, in the middle of one. */
  #fuse = Number.POSITIVE_INFINITY

  /** @param start taken over */
  constructor(start: DiskState, random: Random) {
    this.start = start
    this.random = random
    this.now = { ...start, data: start.data.copy(), metadata: start.metadata.copy() }
  }

  /** The files for a new process. */
  open(): Handles {
    const process = ++this.#process
    this.#fuse = Number.POSITIVE_INFINITY
    this.death = new Promise(resolve => {
      this.#dies = resolve
    })
    const alive = (): boolean => this.#process === process
    const record = (event: PowerEvent): void => {
      if (!alive()) throw new Killed('killed')
      this.#record(event)
    }
    return {
      alive,
      data: new PowerStore(this, 'data', alive, record),
      metadata: new PowerStore(this, 'metadata', alive, record),
      journal: {
        bootId: `boot-${this.now.boot}`,
        readAll: () => this.now.journal,
        append: (content, length) => {
          const appended = Buffer.from(content.subarray(0, length))
          record({ kind: 'append', file: 'journal', content: appended })
        },
        cut: length => {
          const content = Buffer.from(this.now.journal.subarray(0, length))
          if (content.length < this.now.journal.length) {
            record({ kind: 'replace', file: 'journal', content })
          }
        },
        replace: content =>
          record({ kind: 'replace', file: 'journal', content: Buffer.from(content) }),
        sync: () => this.flush('journal', alive),
      },
      table: {
        path: 'volumes.json',
        read: () => this.now.table,
        replace: async content => {
          // The temporary file is flushed before it gets the name, the folder afterwards.
          await this.#wait(alive)
          record({ kind: 'replace', file: 'table', content: Buffer.from(content).toString() })
          await this.flush('table', alive)
        },
      },
    }
  }

  /** A look at a file that touches nothing. */
  look(file: BlockFile): Store {
    const record = (): never => {
      throw new Error(`${file} is only looked at`)
    }
    return new PowerStore(this, file, () => true, record)
  }

  /** The process that has the handles dies: at once, or in the middle of an event to come. */
  kill(events = 0): void {
    this.#fuse = events
    if (events === 0) this.#die()
  }

  /** Takes back that the process would be killed in an event to come. */
  spare(): void {
    this.#fuse = Number.POSITIVE_INFINITY
  }

  /** Somebody else makes a file larger. */
  grow(file: BlockFile, size: number): void {
    this.#apply({ kind: 'grow', file, size })
  }

  /** The machine is shut down in order, and started again. */
  reboot(): void {
    this.#die()
    for (const file of ['data', 'metadata', 'journal', 'table', 'label'] as const) {
      this.events.push({ kind: 'flush', file, covers: this.events.length })
    }
    this.now.boot++
  }

  /** What was written before the call lasts from when this resolves. */
  async flush(file: FlushedFile, alive: () => boolean): Promise<void> {
    const covers = this.events.length
    await this.#wait(alive)
    this.events.push({ kind: 'flush', file, covers })
  }

  async #wait(alive: () => boolean): Promise<void> {
    for (let turns = this.random.between(1, 3); turns > 0; turns--) {
      await new Promise(resolve => setImmediate(resolve))
    }
    // Nobody is there any more who could be told.
    if (!alive()) await new Promise(() => {})
  }

  #record(event: PowerEvent): void {
    if (this.#fuse-- > 0) {
      this.#apply(event)
      return
    }
    // A system call that a signal ends may have done a part of its work.
    if ('content' in event && event.file !== 'table' && event.kind !== 'replace') {
      const part = this.random.below(event.content.length / SECTOR + 1) * SECTOR
      if (part > 0) this.#apply({ ...event, content: event.content.subarray(0, part) })
    }
    this.#die()
    throw new Killed('killed')
  }

  #die(): void {
    this.#process++
    this.#fuse = Number.POSITIVE_INFINITY
    this.#dies('killed')
  }

  #apply(event: PowerEvent): void {
    const { now } = this
    this.events.push(event)
    if (event.kind === 'write') now[event.file].write(event.content, event.offset)
    else if (event.kind === 'punch') now[event.file].punch(event.offset, event.length)
    else if (event.kind === 'grow') now[event.file].grow(event.size)
    else if (event.kind === 'cut') now[event.file].cut(event.size)
    else if (event.kind === 'label') now.label = event.label
    else if (event.kind === 'append') now.journal = Buffer.concat([now.journal, event.content])
    else if (event.kind === 'replace' && event.file === 'journal') now.journal = event.content
    else if (event.kind === 'replace' && event.file === 'table') now.table = event.content
  }
}

/** A file of a PowerDisk, as one process has it open. */
export class PowerStore implements Store {
  readonly path: string
  readonly punches = true
  readonly copiesShare = false
  size: Bytes
  readonly #disk: PowerDisk
  readonly #file: BlockFile
  readonly #alive: () => boolean
  readonly #record: (event: PowerEvent) => void

  constructor(
    disk: PowerDisk,
    file: BlockFile,
    alive: () => boolean,
    record: (event: PowerEvent) => void,
  ) {
    this.path = file
    this.size = bytes(disk.now[file].bytes.length)
    this.#disk = disk
    this.#file = file
    this.#alive = alive
    this.#record = record
  }

  get image(): SparseImage {
    return this.#disk.now[this.#file]
  }

  read(buffer: Uint8Array, at: number, length: number, offset: Bytes): void {
    this.#check(offset, length)
    this.image.bytes.copy(buffer, at, offset, offset + length)
  }

  readNow(buffer: Uint8Array, at: number, length: number, offset: Bytes): boolean {
    this.read(buffer, at, length, offset)
    return true
  }

  async readLater(buffer: Uint8Array, at: number, length: number, offset: Bytes): Promise<void> {
    this.read(buffer, at, length, offset)
  }

  write(buffer: Uint8Array, at: number, length: number, offset: Bytes): void {
    this.#check(offset, length)
    const content = Buffer.from(buffer.subarray(at, at + length))
    this.#record({ kind: 'write', file: this.#file, offset, content })
  }

  copy(source: Bytes, target: Bytes, length: Bytes): void {
    this.#check(source, length)
    this.write(this.image.bytes, source, length, target)
  }

  punch(offset: Bytes, length: Bytes): void {
    this.#check(offset, length)
    this.#record({ kind: 'punch', file: this.#file, offset, length })
  }

  async punchLater(offset: Bytes, length: Bytes): Promise<void> {
    await new Promise(resolve => setImmediate(resolve))
    this.punch(offset, length)
  }

  zero(offset: Bytes, length: Bytes): void {
    this.write(Buffer.alloc(length), 0, length, offset)
  }

  nextData(offset: Bytes): Bytes {
    return this.#seek(offset, 1)
  }

  nextHole(offset: Bytes): Bytes {
    return this.#seek(offset, 0)
  }

  sync(): Promise<void> {
    return this.#disk.flush(this.#file, this.#alive)
  }

  async syncAll(): Promise<void> {
    await this.sync()
    await this.#disk.flush('label', this.#alive)
  }

  readLabel(): Label | null {
    return this.#file === 'data' ? this.#disk.now.label : null
  }

  writeLabel(label: Label): boolean {
    if (this.#file === 'data') this.#record({ kind: 'label', file: 'label', label })
    return this.#file === 'data'
  }

  measure(): void {
    this.size = bytes(this.image.bytes.length)
  }

  grow(size: Bytes): void {
    this.#record({ kind: 'grow', file: this.#file, size })
    this.size = size
  }

  cut(size: Bytes): void {
    this.#record({ kind: 'cut', file: this.#file, size })
    this.size = size
  }

  close(): void {}

  #seek(offset: Bytes, wanted: number): Bytes {
    const page = this.image.pages.indexOf(wanted, Math.floor(offset / PAGE))
    return page < 0 ? this.size : bytes(Math.min(Math.max(offset, page * PAGE), this.size))
  }

  #check(offset: number, length: number): void {
    if (!this.#alive()) throw new Killed('killed')
    if (offset < 0 || length < 0 || offset + length > this.size) {
      throw new ThinfsError('IO_ERROR', `${this.path}: ${length} bytes at ${offset}: past the end`)
    }
  }
}
