/** Reads of what the cache does not have. */
import { allEnded, PAGE_SIZE } from '../base/index.js'
import { ioError } from '../storage/index.js'
import { type CacheMemory, SLOT } from './cache-memory.js'
import { forEachRun, pagesOf } from './pages.js'
import type { RemoteDisk } from './remote-disk.js'
import type { Room } from './room.js'
import type { Slots } from './slots.js'
import type { Zones } from './zones.js'

export interface ColdReadsOptions {
  disk: RemoteDisk
  memory: CacheMemory
  slots: Slots
  zones: Zones
  room: Room
}

export class ColdReads {
  readonly #disk: RemoteDisk
  readonly #memory: CacheMemory
  readonly #slots: Slots
  readonly #zones: Zones
  readonly #room: Room

  constructor({ disk, memory, slots, zones, room }: ColdReadsOptions) {
    this.#disk = disk
    this.#memory = memory
    this.#slots = slots
    this.#zones = zones
    this.#room = room
  }

  /** Reads bytes of one slot. @throws IO_ERROR */
  async read(buffer: Uint8Array, at: number, from: number, to: number): Promise<void> {
    await this.#zones.end(from, to)
    if (this.#slots.has(from, to)) {
      this.#slots.copyOut(buffer, at, from, to)
      return
    }
    const slot = this.#slots.slotOf(Math.floor(from / SLOT))
    if (slot < 0) return this.#readAround(buffer, at, from, to)
    await this.withPages(slot, pagesOf(from, to), () => this.#slots.copyOut(buffer, at, from, to))
  }

  /** Calls `use` when pages of a slot are valid, which stays meanwhile. @throws IO_ERROR */
  async withPages(slot: number, pages: number, use: () => void): Promise<void> {
    this.#slots.pin(slot)
    try {
      await this.#fetch(slot, pages)
      use()
    } finally {
      if (this.#slots.unpin(slot)) this.#room.wake()
    }
  }

  /** Makes pages of a slot valid. */
  async #fetch(slot: number, pages: number): Promise<void> {
    const { valid, blocks } = this.#memory
    const block = blocks[slot]! * SLOT
    const reads: Promise<void>[] = []
    forEachRun(pages & ~valid[slot]!, (first, end) => {
      const content = Buffer.allocUnsafeSlow((end - first) * PAGE_SIZE)
      reads.push(
        this.#disk.read(content, block + first * PAGE_SIZE).then(
          () => this.#slots.fill(slot, first, end, content),
          err => {
            throw ioError(this.#disk.path, `read of ${content.length} bytes`, err)
          },
        ),
      )
    })
    await allEnded(reads)
  }

  /** Reads what no slot is to be had for. */
  async #readAround(buffer: Uint8Array, at: number, from: number, to: number): Promise<void> {
    const begin = Math.floor(from / PAGE_SIZE) * PAGE_SIZE
    const content = Buffer.allocUnsafeSlow(Math.ceil(to / PAGE_SIZE) * PAGE_SIZE - begin)
    try {
      await this.#disk.read(content, begin)
    } catch (err) {
      throw ioError(this.#disk.path, `read of ${content.length} bytes`, err)
    }
    for (let page = begin; page < to; page += PAGE_SIZE) {
      const [first, end] = [Math.max(from, page), Math.min(to, page + PAGE_SIZE)]
      // Bytes that were written meanwhile are newer.
      if (this.#slots.has(first, end)) this.#slots.copyOut(buffer, at + (first - from), first, end)
      else buffer.set(content.subarray(first - begin, end - begin), at + (first - from))
    }
  }
}
