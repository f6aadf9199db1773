/**
 * A store on a disk that answers later, behind a page cache of its own.
 *
 * Reads of what the cache has and writes end at once; what is dirty is written back when there is
 * much of it, and by `sync`. The cache is memory that outlives the process (CacheMemory): the
 * store that maps it next goes on where this one ended.
 *
 * What the disk has acknowledged and not flushed may be lost with a connection (`epoch`): the pages
 * stay in the cache until a flush has covered them, and are written once more where it did not.
 */
import {
  allEnded,
  assert,
  type Bytes,
  bytes,
  type Clock,
  type Later,
  MIB,
  PAGE_SIZE,
  SYSTEM_CLOCK,
  ThinfsError,
} from '../base/index.js'
import { DataMap, type DataStore, ioError, mustCopy, mustHaveRange } from '../storage/index.js'
import { ALL_PAGES, CacheMemory, FREE, SLOT, SLOT_PAGES, ZEROED_MAX } from './cache-memory.js'
import type { RemoteDisk } from './remote-disk.js'

/** Slots that are written back at a time. */
const DEPTH = 32
/** Ranges that are zeroed again at a time. */
const ZEROS_DEPTH = 16
/** Milliseconds that a flush may take because of what was acknowledged before. */
const FLUSH_MS = 2000
/** Bytes that may be dirty at least, and before it is known how fast the disk is. */
const DIRTY_MIN = MIB
const DIRTY_FIRST = 64 * MIB
/** A pass that wrote less says nothing of the disk's speed. */
const MEASURED_MIN = 256 * 1024
const ZEROS = new Uint8Array(MIB)

export interface RemoteStoreOptions {
  disk: RemoteDisk
  /** A descriptor of `CacheMemory.create`, which stays the caller's. */
  cache: number
  /** Bytes that are punched at least: of a page to a slot, and a power of two. */
  granule: number
  clock?: Clock
}

/** A range that is being zeroed. */
interface Zone {
  begin: number
  end: number
  ended: Promise<void>
}

export class RemoteStore implements DataStore {
  readonly path: string
  readonly size: Bytes
  readonly punches: boolean
  readonly copiesShare = false
  readonly #disk: RemoteDisk
  readonly #memory: CacheMemory
  readonly #granule: number
  readonly #clock: Clock
  readonly #data: DataMap
  /** By the number of 64 KiB of the disk: the slot that has it. */
  readonly #slots = new Map<number, number>()
  readonly #free: number[] = []
  /** The slot from which the search for one to be reused goes on. */
  #hand = 0
  /** By slot: whether it was used since the search came by. */
  readonly #recent: Uint8Array
  /** By slot: calls that need it to stay. */
  readonly #pins: Uint16Array
  /** By slot and page: what the flush under way covers. */
  readonly #flushing: Uint16Array
  /** By slot and page: what is being sent. */
  readonly #sendingPages: Uint16Array
  readonly #sending = new Map<number, Promise<void>>()
  readonly #dirtySlots = new Set<number>()
  /** Slots with pages that are dirty or not flushed. */
  readonly #held = new Set<number>()
  /** Pages that are dirty or being sent. */
  #nrUnsent = 0
  /** Bytes of them at which writes wait. */
  #limit: number
  readonly #limitMax: number
  readonly #zones = new Set<Zone>()
  /** Zeroing that the disk has been asked for and has not answered. */
  readonly #zeroing = new Set<Promise<void>>()
  /** Places in CacheMemory.zeroed of what the disk has zeroed. */
  readonly #zeroed = new Set<number>()
  /** The epoch of the disk in which everything was written that no flush has covered. */
  #epoch: number
  /** While things are written once more: nothing else is sent. */
  #gate: Promise<void> | null = null
  #draining: Promise<void> | null = null
  /** The last pass that was begun, and whether it has not got to its snapshot. */
  #pass: Promise<void> = Promise.resolve()
  #nextPass: Promise<void> | null = null
  /** Writes that wait for room. */
  #waiters: (() => void)[] = []

  /**
   * Goes on with what is in the cache, and learns where the disk has holes.
   * @throws IO_ERROR; BAD_ARGUMENT for the cache of another disk
   */
  static async open(options: RemoteStoreOptions): Promise<RemoteStore> {
    const { disk } = options
    const { epoch } = disk
    const memory = new CacheMemory(options.cache, disk)
    const extents = async (): Promise<{ offset: number; length: number }[] | null> => {
      // Another process may have sent these, and the disk have lost them.
      for (const at of memory.zeroedPlaces()) {
        await disk.zero(memory.zeroed[at]!, memory.zeroed[at + 1]!)
      }
      return disk.extents(0, sizeOf(disk))
    }
    try {
      return new RemoteStore(options, memory, epoch, await extents())
    } catch (err) {
      throw ioError(disk.path, 'opening', err)
    }
  }

  private constructor(
    { disk, granule, clock = SYSTEM_CLOCK }: RemoteStoreOptions,
    memory: CacheMemory,
    epoch: number,
    extents: { offset: number; length: number }[] | null,
  ) {
    assert(
      granule >= PAGE_SIZE && granule <= SLOT && SLOT % granule === 0,
      'a granule of the cache',
    )
    this.path = disk.path
    this.size = sizeOf(disk)
    // A server that never tells of a hole would have free blocks read, to see whether they are zeros.
    const tells = extents !== null && !(extents.length === 1 && extents[0]!.length >= this.size)
    this.punches = disk.makesHoles && tells
    this.#disk = disk
    this.#memory = memory
    this.#granule = granule
    this.#clock = clock
    this.#epoch = epoch
    const { nrSlots, blocks, dirty, pending, valid } = memory
    this.#recent = new Uint8Array(nrSlots)
    this.#pins = new Uint16Array(nrSlots)
    this.#flushing = new Uint16Array(nrSlots)
    this.#sendingPages = new Uint16Array(nrSlots)
    this.#limitMax = (nrSlots / 2) * SLOT
    this.#limit = Math.min(this.#limitMax, DIRTY_FIRST)
    this.#data = new DataMap(this.size, granule)
    for (const { offset, length } of extents ?? [{ offset: 0, length: this.size }]) {
      this.#data.add(offset, Math.min(length, this.size - offset))
    }
    for (const at of memory.zeroedPlaces()) this.#zeroed.add(at)
    for (let slot = nrSlots - 1; slot >= 0; slot--) {
      const block = blocks[slot]!
      if (block === FREE) {
        // The process that began to fill it was killed.
        valid[slot] = dirty[slot] = pending[slot] = 0
        this.#free.push(slot)
        continue
      }
      this.#slots.set(block, slot)
      const again = dirty[slot]! | pending[slot]!
      dirty[slot] = 0
      if (again !== 0) this.#makeDirty(slot, again)
    }
  }

  // --- what the cache has ---

  readNow(buffer: Uint8Array, at: number, length: number, offset: Bytes): boolean {
    mustHaveRange(this, 'read', offset, length)
    const end = offset + length
    for (let from: number = offset; from < end; ) {
      const to = Math.min(end, slotEnd(from))
      if (!this.#has(from, to)) return false
      from = to
    }
    for (let from: number = offset; from < end; ) {
      const to = Math.min(end, slotEnd(from))
      this.#copyOut(buffer, at + (from - offset), from, to)
      from = to
    }
    return true
  }

  write(buffer: Uint8Array, at: number, length: number, offset: Bytes): Later<void> {
    mustHaveRange(this, 'write', offset, length)
    const end = offset + length
    for (let from: number = offset; from < end; ) {
      const to = Math.min(end, slotEnd(from))
      const rest = at + (from - offset)
      if (this.#nrUnsent * PAGE_SIZE >= this.#limit || !this.#writeNow(buffer, rest, from, to)) {
        return this.#writeLater(Buffer.from(buffer.subarray(rest, at + length)), from)
      }
      from = to
    }
    if (this.#nrUnsent * PAGE_SIZE >= this.#limit / 2) this.#startDrain()
  }

  /** First byte at or after `offset` of a granule that may hold something. */
  nextData(offset: Bytes): Bytes {
    return bytes(Math.min(this.#data.next(offset, 1), this.size))
  }

  nextHole(offset: Bytes): Bytes {
    return bytes(Math.min(this.#data.next(offset, 0), this.size))
  }

  /** Bytes that are dirty or being sent. */
  get unsent(): number {
    return this.#nrUnsent * PAGE_SIZE
  }

  // --- what may have to wait for the disk ---

  async readLater(buffer: Uint8Array, at: number, length: number, offset: Bytes): Promise<void> {
    mustHaveRange(this, 'read', offset, length)
    const end = offset + length
    const reads: Promise<void>[] = []
    for (let from: number = offset; from < end; ) {
      const to = Math.min(end, slotEnd(from))
      reads.push(this.#readPart(buffer, at + (from - offset), from, to))
      from = to
    }
    await allEnded(reads)
  }

  copy(source: Bytes, target: Bytes, length: Bytes): Later<void> {
    mustCopy(this, source, target, length)
    const held = Buffer.allocUnsafeSlow(length)
    if (this.readNow(held, 0, length, source)) return this.write(held, 0, length, target)
    return this.readLater(held, 0, length, source).then(() => this.write(held, 0, length, target))
  }

  punch(offset: Bytes, length: Bytes): Later<void> {
    mustHaveRange(this, 'punch', offset, length)
    if (this.#data.isHole(offset, length)) return
    const begin = Math.ceil(offset / this.#granule) * this.#granule
    const last = offset + length === this.size ? this.size : offset + length
    const end = last === this.size ? last : Math.floor(last / this.#granule) * this.#granule
    if (end <= begin) return this.#writeZeros(offset, offset + length)
    const calls = [this.#writeZeros(offset, begin), this.#clear(begin, end)]
    return allEnded([...calls, this.#writeZeros(end, offset + length)])
  }

  async punchLater(offset: Bytes, length: Bytes): Promise<void> {
    await this.punch(offset, length)
  }

  zero(offset: Bytes, length: Bytes): Later<void> {
    mustHaveRange(this, 'zero', offset, length)
    return this.punch(offset, length)
  }

  /** Writes back what is dirty, and has the disk flush it. */
  sync(): Promise<void> {
    // One that waits for its turn covers what was written up to now.
    this.#nextPass ??= this.#pass.then(() => {
      this.#nextPass = null
      const pass = this.#save()
      this.#pass = pass.catch(() => {})
      return pass
    })
    return this.#nextPass
  }

  measure(): void {}

  /** The disk has the size that it has. @throws BAD_ARGUMENT */
  grow(size: Bytes): void {
    if (size === this.size) return
    const detail = `${this.path}: the disk has ${this.size} bytes, ${size} are wanted`
    throw new ThinfsError('BAD_ARGUMENT', detail)
  }

  /** Ends the connection. What was not flushed is in the cache. */
  close(): void {
    this.#disk.close()
  }

  // --- slots ---

  /** Whether the bytes [from, to) of one slot can be had at once. */
  #has(from: number, to: number): boolean {
    const slot = this.#slots.get(Math.floor(from / SLOT))
    if (slot !== undefined) {
      const wanted = pagesOf(from, to)
      if ((this.#memory.valid[slot]! & wanted) === wanted) return true
    }
    return this.#data.isHole(from, to - from) && !this.#isZeroing(from, to)
  }

  #copyOut(buffer: Uint8Array, at: number, from: number, to: number): void {
    const block = Math.floor(from / SLOT)
    const slot = this.#slots.get(block)
    if (slot === undefined) {
      buffer.fill(0, at, at + (to - from))
      return
    }
    const wanted = pagesOf(from, to)
    if ((this.#memory.valid[slot]! & wanted) !== wanted) {
      buffer.fill(0, at, at + (to - from))
      return
    }
    this.#recent[slot] = 1
    const begin = this.#memory.beginOf(slot) + (from - block * SLOT)
    buffer.set(this.#memory.bytesOf(slot).subarray(begin, begin + (to - from)), at)
  }

  /** @returns false when a slot, or the rest of a page at an edge, is missing */
  #writeNow(buffer: Uint8Array, at: number, from: number, to: number): boolean {
    const block = Math.floor(from / SLOT)
    const slot = this.#slots.get(block) ?? this.#take(block)
    if (slot < 0) return false
    const { valid } = this.#memory
    if ((edgesOf(from, to) & ~valid[slot]!) !== 0) return false
    const begin = this.#memory.beginOf(slot) + (from - block * SLOT)
    this.#memory.bytesOf(slot).set(buffer.subarray(at, at + (to - from)), begin)
    const pages = pagesOf(from, to)
    valid[slot]! |= pages
    this.#makeDirty(slot, pages)
    this.#recent[slot] = 1
    return true
  }

  #makeDirty(slot: number, pages: number): void {
    const { dirty, blocks } = this.#memory
    const before = dirty[slot]!
    const fresh = pages & ~before
    if (fresh === 0) return
    if (before === 0) {
      this.#dirtySlots.add(slot)
      this.#held.add(slot)
    }
    this.#nrUnsent += countOf(fresh)
    dirty[slot] = before | pages
    const block = blocks[slot]! * SLOT
    if (this.#granule === SLOT) {
      this.#data.add(block, 1)
      return
    }
    for (let i = 0; i < SLOT_PAGES; i++) {
      if ((fresh & (1 << i)) !== 0) this.#data.add(block + i * PAGE_SIZE, PAGE_SIZE)
    }
  }

  /** Gives 64 KiB of the disk a slot, in which its holes are valid. @returns -1 when none is left */
  #take(block: number): number {
    const slot = this.#free.pop() ?? this.#evict()
    if (slot < 0) return -1
    const { valid, blocks } = this.#memory
    valid[slot] = 0
    blocks[slot] = block
    this.#slots.set(block, slot)
    this.#recent[slot] = 1
    const begin = this.#memory.beginOf(slot)
    const contents = this.#memory.bytesOf(slot)
    let holes = 0
    for (let at = 0; at < SLOT; at += this.#granule) {
      const from = block * SLOT + at
      if (from >= this.size) break
      if (!this.#data.isHole(from, this.#granule)) continue
      if (this.#isZeroing(from, from + this.#granule)) continue
      contents.fill(0, begin + at, begin + at + this.#granule)
      holes |= pagesOf(at, at + this.#granule)
    }
    valid[slot] = holes
    return slot
  }

  /** Takes a slot from what nobody has used for a while. @returns -1 when all have to stay */
  #evict(): number {
    const { nrSlots, blocks } = this.#memory
    for (let looked = 0; looked < 2 * nrSlots; looked++) {
      const slot = this.#hand
      this.#hand = slot + 1 === nrSlots ? 0 : slot + 1
      if (blocks[slot] === FREE || this.#pins[slot] !== 0 || this.#held.has(slot)) continue
      if (this.#recent[slot] !== 0) {
        this.#recent[slot] = 0
        continue
      }
      this.#empty(slot)
      return slot
    }
    return -1
  }

  /** Forgets what a slot has. */
  #empty(slot: number): void {
    const { blocks, valid, dirty, pending } = this.#memory
    this.#slots.delete(blocks[slot]!)
    blocks[slot] = FREE
    valid[slot] = 0
    dirty[slot] = 0
    pending[slot] = 0
  }

  #unpin(slot: number): void {
    this.#pins[slot]!--
    if (this.#pins[slot] === 0) this.#wake()
  }

  #wake(): void {
    for (const resolve of this.#waiters.splice(0)) resolve()
  }

  // --- reads from the disk ---

  async #readPart(buffer: Uint8Array, at: number, from: number, to: number): Promise<void> {
    await this.#zonesEnd(from, to)
    if (this.#has(from, to)) {
      this.#copyOut(buffer, at, from, to)
      return
    }
    const block = Math.floor(from / SLOT)
    const slot = this.#slots.get(block) ?? this.#take(block)
    if (slot < 0) return this.#readAround(buffer, at, from, to)
    this.#pins[slot]!++
    try {
      await this.#fetch(slot, pagesOf(from, to))
      this.#copyOut(buffer, at, from, to)
    } finally {
      this.#unpin(slot)
    }
  }

  /** Makes pages of a slot, which is pinned, valid. */
  async #fetch(slot: number, pages: number): Promise<void> {
    const { valid, blocks } = this.#memory
    const block = blocks[slot]! * SLOT
    const reads: Promise<void>[] = []
    forEachRun(pages & ~valid[slot]!, (first, end) => {
      const content = Buffer.allocUnsafeSlow((end - first) * PAGE_SIZE)
      reads.push(
        this.#disk.read(content, block + first * PAGE_SIZE).then(
          () => this.#fill(slot, first, end, content),
          err => {
            throw ioError(this.path, `read of ${content.length} bytes`, err)
          },
        ),
      )
    })
    await allEnded(reads)
  }

  /** Fills pages with what was read, but those that were written meanwhile. */
  #fill(slot: number, first: number, end: number, content: Buffer): void {
    const { valid } = this.#memory
    const target = this.#memory.bytesOf(slot)
    const begin = this.#memory.beginOf(slot)
    for (let page = first; page < end; page++) {
      if ((valid[slot]! & (1 << page)) !== 0) continue
      const at = (page - first) * PAGE_SIZE
      target.set(content.subarray(at, at + PAGE_SIZE), begin + page * PAGE_SIZE)
      valid[slot]! |= 1 << page
    }
  }

  /** Reads what no slot is to be had for. */
  async #readAround(buffer: Uint8Array, at: number, from: number, to: number): Promise<void> {
    const begin = Math.floor(from / PAGE_SIZE) * PAGE_SIZE
    const content = Buffer.allocUnsafeSlow(Math.ceil(to / PAGE_SIZE) * PAGE_SIZE - begin)
    try {
      await this.#disk.read(content, begin)
    } catch (err) {
      throw ioError(this.path, `read of ${content.length} bytes`, err)
    }
    for (let page = begin; page < to; page += PAGE_SIZE) {
      const [first, end] = [Math.max(from, page), Math.min(to, page + PAGE_SIZE)]
      // Bytes that were written meanwhile are newer.
      if (this.#has(first, end)) this.#copyOut(buffer, at + (first - from), first, end)
      else buffer.set(content.subarray(first - begin, end - begin), at + (first - from))
    }
  }

  // --- writes that wait ---

  async #writeLater(held: Uint8Array, offset: number): Promise<void> {
    const end = offset + held.length
    for (let from = offset; from < end; ) {
      if (this.#nrUnsent * PAGE_SIZE >= this.#limit) {
        await this.#drained()
        continue
      }
      const to = Math.min(end, slotEnd(from))
      await this.#writePart(held, from - offset, from, to)
      from = to
    }
  }

  async #writePart(held: Uint8Array, at: number, from: number, to: number): Promise<void> {
    const block = Math.floor(from / SLOT)
    for (;;) {
      const slot = this.#slots.get(block) ?? this.#take(block)
      if (slot < 0) {
        await this.#slotFreed()
        continue
      }
      this.#pins[slot]!++
      try {
        await this.#fetch(slot, edgesOf(from, to))
        const isWritten = this.#writeNow(held, at, from, to)
        assert(isWritten, 'a slot that is pinned takes a write')
        return
      } finally {
        this.#unpin(slot)
      }
    }
  }

  /** Waits until some slot may be free. */
  async #slotFreed(): Promise<void> {
    if (this.#held.size > 0) return this.sync()
    await new Promise<void>(resolve => this.#waiters.push(resolve))
  }

  /** Waits until less is dirty. @throws what kept it from being written back */
  #drained(): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#waiters.push(resolve)
      this.#startDrain()
      this.#draining?.then(resolve, reject)
    })
  }

  /** Begins to write back what is dirty. */
  #startDrain(): void {
    if (this.#draining !== null) return
    // Slots that wait for a flush are none for reads.
    const isFull = this.#held.size > this.#memory.nrSlots / 2
    const draining = (isFull ? this.sync() : this.#writeBack()).finally(() => {
      this.#draining = null
    })
    this.#draining = draining
    // The waiters are told; the pages that failed are still dirty, and the next flush tries them.
    draining.catch(() => {})
  }

  // --- zeros ---

  #writeZeros(from: number, to: number): Later<void> {
    if (from >= to || this.#data.isHole(from, to - from)) return
    const calls: Promise<void>[] = []
    for (let at = from; at < to; at += ZEROS.length) {
      const written = this.write(ZEROS, 0, Math.min(ZEROS.length, to - at), bytes(at))
      if (written !== undefined) calls.push(written)
    }
    if (calls.length > 0) return allEnded(calls)
  }

  /** Makes the disk zero a range of whole granules. */
  #clear(begin: number, end: number): Promise<void> {
    const zone: Zone = { begin, end, ended: Promise.resolve() }
    this.#zones.add(zone)
    const clearing = this.#clearZone(begin, end).finally(() => this.#zones.delete(zone))
    zone.ended = clearing.catch(() => {})
    return clearing
  }

  async #clearZone(begin: number, end: number): Promise<void> {
    for (;;) {
      if (this.#gate !== null) await this.#gate
      else if (this.#memory.nrZeroed >= ZEROED_MAX) await this.sync()
      else {
        const sends = this.#sendsTo(begin, end)
        if (sends.length === 0) break
        await Promise.allSettled(sends)
      }
    }
    const place = this.#memory.noteZeroed(begin, end - begin)
    this.#forEachSlot(begin, end, (slot, pages) => this.#blank(slot, pages))
    const zeroing = this.#disk.zero(begin, end - begin)
    this.#zeroing.add(zeroing)
    try {
      await zeroing
    } catch (err) {
      throw ioError(this.path, `zeroing ${end - begin} bytes at ${begin}`, err)
    } finally {
      this.#zeroing.delete(zeroing)
      // A call that failed may have been carried out all the same, and be lost again.
      this.#zeroed.add(place)
    }
    this.#data.remove(begin, end - begin)
    // Slots that came meanwhile have these pages as others have holes.
    this.#forEachSlot(begin, end, (slot, pages) => this.#fillHoles(slot, pages))
  }

  /** Pages of a slot are zeros now, and nobody has to write that. */
  #blank(slot: number, pages: number): void {
    const { dirty, pending, valid } = this.#memory
    this.#nrUnsent -= countOf(dirty[slot]! & pages)
    dirty[slot]! &= ~pages
    pending[slot]! &= ~pages
    this.#flushing[slot]! &= ~pages
    if (dirty[slot] === 0) this.#dirtySlots.delete(slot)
    this.#release(slot)
    if (pages === ALL_PAGES && this.#pins[slot] === 0) {
      this.#empty(slot)
      this.#free.push(slot)
      return
    }
    valid[slot]! &= ~pages
    this.#fillHoles(slot, pages)
  }

  /** Makes pages that are not valid zeros. */
  #fillHoles(slot: number, pages: number): void {
    const { valid } = this.#memory
    const begin = this.#memory.beginOf(slot)
    const contents = this.#memory.bytesOf(slot)
    forEachRun(pages & ~valid[slot]!, (first, end) => {
      contents.fill(0, begin + first * PAGE_SIZE, begin + end * PAGE_SIZE)
    })
    valid[slot]! |= pages
  }

  #isZeroing(from: number, to: number): boolean {
    if (this.#zones.size === 0) return false
    for (const { begin, end } of this.#zones) if (begin < to && from < end) return true
    return false
  }

  /** Resolves when no part of a range is being zeroed. */
  async #zonesEnd(from: number, to: number): Promise<void> {
    while (this.#isZeroing(from, to)) {
      for (const { begin, end, ended } of this.#zones) if (begin < to && from < end) await ended
    }
  }

  // --- writing back ---

  /** Calls `use` with each slot that has a part of a range, and which pages. */
  #forEachSlot(begin: number, end: number, use: (slot: number, pages: number) => void): void {
    const inSlot = (block: number, slot: number): void => {
      const from = Math.max(begin, block * SLOT)
      const to = Math.min(end, (block + 1) * SLOT)
      if (from < to) use(slot, to === this.size ? pagesOf(from, slotEnd(from)) : pagesOf(from, to))
    }
    const [first, last] = [Math.floor(begin / SLOT), Math.ceil(end / SLOT)]
    if (last - first > this.#slots.size) {
      for (const [block, slot] of [...this.#slots]) inSlot(block, slot)
      return
    }
    for (let block = first; block < last; block++) {
      const slot = this.#slots.get(block)
      if (slot !== undefined) inSlot(block, slot)
    }
  }

  #sendsTo(begin: number, end: number): Promise<void>[] {
    const sends: Promise<void>[] = []
    this.#forEachSlot(begin, end, slot => {
      const sending = this.#sending.get(slot)
      if (sending !== undefined) sends.push(sending)
    })
    return sends
  }

  /** A slot whose pages are all flushed may be reused. */
  #release(slot: number): void {
    if (this.#memory.dirty[slot] === 0 && this.#memory.pending[slot] === 0) this.#held.delete(slot)
  }

  /** Makes durable what was written before the call. */
  async #save(): Promise<void> {
    for (;;) {
      const { epoch } = this.#disk
      if (epoch !== this.#epoch) await this.#doAgain(epoch)
      await this.#writeBack()
      const { pending } = this.#memory
      const covered = [...this.#held]
      for (const slot of covered) {
        this.#flushing[slot] = pending[slot]! & ~this.#sendingPages[slot]!
      }
      const zeroed = [...this.#zeroed]
      try {
        await this.#disk.flush()
      } catch (err) {
        throw ioError(this.path, 'flush', err)
      }
      if (this.#disk.epoch !== epoch) continue
      // First the zeros: a page that is written after them is not flushed as long as they are not.
      for (const place of zeroed) {
        this.#zeroed.delete(place)
        this.#memory.forgetZeroed(place)
      }
      for (const slot of covered) {
        pending[slot]! &= ~this.#flushing[slot]!
        this.#flushing[slot] = 0
        this.#release(slot)
      }
      this.#wake()
      return
    }
  }

  /** Sends what is dirty now, and waits for what was being sent. */
  async #writeBack(): Promise<void> {
    const { blocks } = this.#memory
    const begun = this.#clock.now()
    const slots = [...this.#dirtySlots].sort((one, other) => blocks[one]! - blocks[other]!)
    const before = [...this.#sending.values()]
    let sent = 0
    let next = 0
    const work = async (): Promise<void> => {
      while (next < slots.length) {
        const size = await this.#send(slots[next++]!)
        sent += size
      }
    }
    const works = Array.from({ length: Math.min(DEPTH, slots.length) }, work)
    await allEnded([...works, ...before])
    if (sent < MEASURED_MIN) return
    const perMs = sent / Math.max(1, this.#clock.now() - begun)
    const limit = Math.max(DIRTY_MIN, (this.#limit + perMs * FLUSH_MS) / 2)
    this.#limit = Math.min(this.#limitMax, limit)
  }

  /** Sends the dirty pages of a slot. @returns bytes. @throws IO_ERROR; they are dirty again then */
  async #send(slot: number): Promise<number> {
    for (;;) {
      const sending = this.#sending.get(slot)
      if (sending !== undefined) await sending.catch(() => {})
      else if (this.#gate !== null) await this.#gate
      else break
    }
    const { dirty, pending } = this.#memory
    const pages = dirty[slot]!
    if (pages === 0) return 0
    pending[slot]! |= pages
    dirty[slot] = 0
    this.#dirtySlots.delete(slot)
    this.#flushing[slot]! &= ~pages
    this.#sendingPages[slot] = pages
    const sending = this.#sendPages(slot, pages)
    this.#sending.set(slot, sending)
    await sending
    return countOf(pages) * PAGE_SIZE
  }

  async #sendPages(slot: number, pages: number): Promise<void> {
    const { blocks } = this.#memory
    const begin = this.#memory.beginOf(slot)
    const contents = this.#memory.bytesOf(slot)
    const writes: Promise<void>[] = []
    forEachRun(pages, (first, end) => {
      const content = contents.subarray(begin + first * PAGE_SIZE, begin + end * PAGE_SIZE)
      writes.push(this.#disk.write(content, blocks[slot]! * SLOT + first * PAGE_SIZE))
    })
    try {
      await allEnded(writes)
      this.#nrUnsent -= countOf(pages)
    } catch (err) {
      // Those that were written meanwhile count twice by now.
      this.#nrUnsent -= countOf(pages)
      this.#makeDirty(slot, pages)
      throw ioError(this.path, 'write', err)
    } finally {
      this.#sendingPages[slot] = 0
      this.#sending.delete(slot)
      if (this.#nrUnsent * PAGE_SIZE < this.#limit) this.#wake()
    }
  }

  /** The disk may have lost all that no flush has covered: zeros first, then the pages. */
  async #doAgain(epoch: number): Promise<void> {
    let open = (): void => {}
    this.#gate = new Promise(resolve => {
      open = resolve
    })
    try {
      await Promise.allSettled([...this.#sending.values(), ...this.#zeroing])
      const { pending, zeroed } = this.#memory
      const places = [...this.#zeroed]
      for (const slot of this.#held) {
        this.#flushing[slot] = 0
        this.#makeDirty(slot, pending[slot]!)
      }
      let next = 0
      const work = async (): Promise<void> => {
        while (next < places.length) {
          const at = places[next++]!
          await this.#disk.zero(zeroed[at]!, zeroed[at + 1]!)
        }
      }
      await allEnded(Array.from({ length: ZEROS_DEPTH }, work))
      this.#epoch = epoch
    } catch (err) {
      throw ioError(this.path, 'zeroing once more', err)
    } finally {
      this.#gate = null
      open()
    }
  }
}

/** Whole pages. */
const sizeOf = ({ size }: RemoteDisk): Bytes => bytes(size - (size % PAGE_SIZE))

const slotEnd = (offset: number): number => (Math.floor(offset / SLOT) + 1) * SLOT

/** The pages that [from, to) touches of the slot that it is in: a bit each. */
function pagesOf(from: number, to: number): number {
  const begin = Math.floor(from / SLOT) * SLOT
  const first = Math.floor((from - begin) / PAGE_SIZE)
  const end = Math.ceil((to - begin) / PAGE_SIZE)
  return (2 ** end - 1) & ~(2 ** first - 1)
}

/** Those of them that it touches in part. */
function edgesOf(from: number, to: number): number {
  let pages = 0
  if (from % PAGE_SIZE !== 0) pages |= pagesOf(from, from + 1)
  if (to % PAGE_SIZE !== 0) pages |= pagesOf(to - 1, to)
  return pages
}

function countOf(pages: number): number {
  let count = 0
  for (let left = pages; left !== 0; left &= left - 1) count++
  return count
}

/** Calls `use` with [first, end) of each run of pages. */
function forEachRun(pages: number, use: (first: number, end: number) => void): void {
  for (let first = 0; first < SLOT_PAGES; first++) {
    if ((pages & (1 << first)) === 0) continue
    let end = first + 1
    while (end < SLOT_PAGES && (pages & (1 << end)) !== 0) end++
    use(first, end)
    first = end
  }
}
