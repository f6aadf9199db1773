/**
 * A small store on a disk that answers later, all of it in memory: what is in use is read once,
 * when it is opened, and from then on every read and write ends at once. `sync` writes back what is
 * dirty and flushes the disk; nothing is sent before.
 *
 * The memory outlives the process (ResidentMemory): the store that maps it next goes on where this
 * one ended, and what nobody had flushed is dirty still. A page is written with pwrite(2), which a
 * SIGKILL does not tear: a metadata block is the old one or the new one.
 */
import {
  allEnded,
  assert,
  type Bytes,
  bytes,
  isZero,
  MIB,
  PAGE_SIZE,
  SEEK_DATA,
  SEEK_HOLE,
} from '../base/index.js'
import { native } from '../native.js'
import { ioError, mustCopy, mustHaveRange, type Store } from '../storage/index.js'
import { Passes } from './passes.js'
import { type Extent, mustHaveSize, NO_EPOCH, type RemoteDisk } from './remote-disk.js'
import { DIRTY, PENDING, ResidentMemory } from './resident-memory.js'

/** Bytes of one request at most, and requests in flight. */
const REQUEST = MIB
const DEPTH = 16
/** Pages between two dirty ones that are sent with them: a request costs more. */
const GAP = 4
const ZEROS = new Uint8Array(MIB)

/** How much of a disk has been read. Bytes. */
export type OnLoad = (done: number, all: number) => void

export interface ResidentStoreOptions {
  disk: RemoteDisk
  /** A descriptor of `ResidentMemory.create`, which stays the caller's. */
  memory: number
  onLoad?: OnLoad
}

export class ResidentStore implements Store {
  readonly path: string
  readonly punches = false
  readonly copiesShare = false
  readonly #disk: RemoteDisk
  readonly #memory: ResidentMemory
  readonly #fd: number
  /** By page: DIRTY, PENDING. */
  #states: Uint8Array
  #size: Bytes
  /** Pages that are dirty. */
  readonly #dirty = new Set<number>()
  /** Pages that were sent, and no flush has covered that. */
  readonly #pending = new Set<number>()
  /** The epoch of the disk in which everything was sent that no flush has covered. */
  #epoch: number
  readonly #passes = new Passes(() => this.#save())

  /**
   * Reads what the disk holds, unless the memory has it already.
   * @throws IO_ERROR; BAD_ARGUMENT for the memory of another disk; POOL_MISMATCH for one that has
   *   become smaller
   */
  static async open({ disk, memory: fd, onLoad }: ResidentStoreOptions): Promise<ResidentStore> {
    const memory = new ResidentMemory(fd, disk)
    const { epoch } = disk
    if (!memory.isWhole) {
      await load(disk, fd, onLoad ?? (() => {}))
      memory.becomeWhole()
    }
    return new ResidentStore(disk, memory, epoch)
  }

  private constructor(disk: RemoteDisk, memory: ResidentMemory, epoch: number) {
    const { fd, states } = memory
    this.path = disk.path
    this.#size = bytes(ResidentMemory.sizeOf(disk.size))
    this.#disk = disk
    this.#memory = memory
    this.#fd = fd
    this.#states = states
    this.#epoch = epoch
    for (let page = 0; page < states.length; page++) {
      if (states[page] === 0) continue
      // Another process may have sent it, and the disk have lost it.
      states[page] = DIRTY
      this.#dirty.add(page)
    }
  }

  get size(): Bytes {
    return this.#size
  }

  /** Bytes that are dirty, or sent and not flushed. */
  get unflushed(): number {
    let pages = this.#dirty.size
    for (const page of this.#pending) if (!this.#dirty.has(page)) pages++
    return pages * PAGE_SIZE
  }

  read(buffer: Uint8Array, at: number, length: number, offset: Bytes): void {
    mustHaveRange(this, 'read', offset, length)
    native.file_read(this.#fd, buffer, at, length, offset)
  }

  readNow(buffer: Uint8Array, at: number, length: number, offset: Bytes): boolean {
    this.read(buffer, at, length, offset)
    return true
  }

  async readLater(buffer: Uint8Array, at: number, length: number, offset: Bytes): Promise<void> {
    this.read(buffer, at, length, offset)
  }

  write(buffer: Uint8Array, at: number, length: number, offset: Bytes): void {
    mustHaveRange(this, 'write', offset, length)
    if (length === 0) return
    // First that they are dirty: a process that is killed in between sends some in vain.
    const end = Math.ceil((offset + length) / PAGE_SIZE)
    for (let page = Math.floor(offset / PAGE_SIZE); page < end; page++) this.#makeDirty(page)
    native.file_write(this.#fd, buffer, at, length, offset)
  }

  copy(source: Bytes, target: Bytes, length: Bytes): void {
    mustCopy(this, source, target, length)
    const held = Buffer.allocUnsafe(Math.min(length, REQUEST))
    for (let done = 0; done < length; done += held.length) {
      const part = Math.min(held.length, length - done)
      this.read(held, 0, part, bytes(source + done))
      this.write(held, 0, part, bytes(target + done))
    }
  }

  zero(offset: Bytes, length: Bytes): void {
    for (let done = 0; done < length; done += ZEROS.length) {
      this.write(ZEROS, 0, Math.min(ZEROS.length, length - done), bytes(offset + done))
    }
  }

  punch(offset: Bytes, length: Bytes): void {
    this.zero(offset, length)
  }

  async punchLater(offset: Bytes, length: Bytes): Promise<void> {
    this.zero(offset, length)
  }

  /** A range that reads as zeros may be no hole. */
  nextData(offset: Bytes): Bytes {
    return this.#seek(offset, SEEK_DATA)
  }

  nextHole(offset: Bytes): Bytes {
    return this.#seek(offset, SEEK_HOLE)
  }

  /** Writes back what is dirty, and has the disk flush it. */
  sync(): Promise<void> {
    return this.#passes.next()
  }

  /**
   * Whether the first page is on the disk as it is here: of metadata, whether nobody has committed
   * since it was read. Nothing may have been written.
   */
  async isCurrent(): Promise<boolean> {
    const [here, there] = [Buffer.alloc(PAGE_SIZE), Buffer.alloc(PAGE_SIZE)]
    try {
      await this.#disk.read(there, 0)
    } catch (err) {
      throw ioError(this.path, 'read of the first page', err)
    }
    this.read(here, 0, PAGE_SIZE, bytes(0))
    return here.equals(there)
  }

  /** Nothing grows but the disk. */
  hostRoom(): null {
    return null
  }

  /** Nobody has used what is new of a larger disk: it is not read. */
  measure(): void {
    const size = bytes(ResidentMemory.sizeOf(this.#disk.size))
    const isLarger = size / PAGE_SIZE > this.#states.length
    if (isLarger) this.#states = this.#memory.grow(size)
    this.#size = size
  }

  async remeasure(): Promise<void> {
    await this.#disk.measure?.()
    this.measure()
  }

  /** The disk has the size that it has. @throws BAD_ARGUMENT for another */
  grow(size: Bytes): void {
    mustHaveSize(this.#disk, this.size, size)
  }

  /** Ends the connection. What was not flushed is in the memory. */
  close(): void {
    this.#disk.close()
  }

  #seek(offset: number, whence: number): Bytes {
    if (offset >= this.size) return this.size
    const found = native.file_seek(this.#fd, offset, whence)
    return found < 0 ? this.size : bytes(Math.min(found, this.size))
  }

  #makeDirty(page: number): void {
    this.#states[page]! |= DIRTY
    this.#dirty.add(page)
  }

  /** Makes durable what was written before the call. */
  async #save(): Promise<void> {
    for (;;) {
      const { epoch } = this.#disk
      if (epoch !== this.#epoch) {
        // The disk may have lost all that no flush has covered.
        for (const page of this.#pending) this.#makeDirty(page)
        this.#epoch = epoch
      }
      await this.#writeBack()
      try {
        await this.#disk.flush()
      } catch (err) {
        // The disk may have lost it all, and does not say so a second time.
        this.#epoch = NO_EPOCH
        throw ioError(this.path, 'flush', err)
      }
      if (this.#disk.epoch !== epoch) continue
      for (const page of this.#pending) this.#states[page]! &= ~PENDING
      this.#pending.clear()
      return
    }
  }

  /** Sends what is dirty now. */
  async #writeBack(): Promise<void> {
    const pages = Float64Array.from(this.#dirty).sort()
    const runs: [first: number, end: number][] = []
    for (const page of pages) {
      const last = runs.at(-1)
      const isNear = last !== undefined && page - last[1] <= GAP
      if (isNear && (page + 1 - last[0]) * PAGE_SIZE <= REQUEST) last[1] = page + 1
      else runs.push([page, page + 1])
    }
    let next = 0
    const work = async (): Promise<void> => {
      while (next < runs.length) {
        const [first, end] = runs[next++]!
        await this.#send(first, end)
      }
    }
    await allEnded(Array.from({ length: Math.min(DEPTH, runs.length) }, work))
  }

  /** @throws IO_ERROR; the pages are dirty again then */
  async #send(first: number, end: number): Promise<void> {
    const content = Buffer.allocUnsafe((end - first) * PAGE_SIZE)
    native.file_read(this.#fd, content, 0, content.length, first * PAGE_SIZE)
    const sent: number[] = []
    for (let page = first; page < end; page++) {
      if (!this.#dirty.delete(page)) continue
      assert((this.#states[page]! & DIRTY) !== 0, 'a dirty page is noted')
      this.#states[page] = PENDING
      this.#pending.add(page)
      sent.push(page)
    }
    try {
      await this.#disk.write(content, first * PAGE_SIZE)
    } catch (err) {
      for (const page of sent) this.#makeDirty(page)
      throw ioError(this.path, 'write', err)
    }
  }
}

/** Reads into memory what a disk holds. */
async function load(disk: RemoteDisk, fd: number, onLoad: OnLoad): Promise<void> {
  const size = ResidentMemory.sizeOf(disk.size)
  let extents: Extent[]
  try {
    extents = (await disk.extents(0, size)) ?? [{ offset: 0, length: size }]
  } catch (err) {
    throw ioError(disk.path, 'reading what is in use', err)
  }
  const parts: Extent[] = []
  let all = 0
  for (const extent of extents) {
    const begin = Math.floor(extent.offset / PAGE_SIZE) * PAGE_SIZE
    const end = Math.min(size, Math.ceil((extent.offset + extent.length) / PAGE_SIZE) * PAGE_SIZE)
    for (let offset = begin; offset < end; offset += REQUEST) {
      const length = Math.min(REQUEST, end - offset)
      parts.push({ offset, length })
      all += length
    }
  }
  let next = 0
  let done = 0
  const work = async (): Promise<void> => {
    const buffer = Buffer.allocUnsafe(REQUEST)
    while (next < parts.length) {
      const { offset, length } = parts[next++]!
      const content = buffer.subarray(0, length)
      try {
        await disk.read(content, offset)
      } catch (err) {
        throw ioError(disk.path, `read of ${length} bytes at ${offset}`, err)
      }
      for (let at = 0; at < length; at += PAGE_SIZE) {
        // Zeros take no memory.
        if (isZero(content.subarray(at, at + PAGE_SIZE))) continue
        native.file_write(fd, content, at, PAGE_SIZE, offset + at)
      }
      done += length
      onLoad(done, all)
    }
  }
  await allEnded(Array.from({ length: Math.min(DEPTH, parts.length) }, work))
}
