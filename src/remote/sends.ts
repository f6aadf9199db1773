/** What is being sent: the dirty pages of the cache, on their way to the disk. */
import { allEnded, type Clock, PAGE_SIZE } from '../base/index.js'
import { ioError } from '../storage/index.js'
import { type CacheMemory, SLOT } from './cache-memory.js'
import { countOf, forEachRun } from './pages.js'
import type { RemoteDisk } from './remote-disk.js'
import type { Room } from './room.js'
import type { Slots } from './slots.js'
import type { Unflushed } from './unflushed.js'

/** Slots that are written back at a time. */
const DEPTH = 32

export interface SendsOptions {
  disk: RemoteDisk
  memory: CacheMemory
  slots: Slots
  unflushed: Unflushed
  room: Room
  clock: Clock
}

export class Sends {
  readonly #disk: RemoteDisk
  readonly #memory: CacheMemory
  readonly #slots: Slots
  readonly #unflushed: Unflushed
  readonly #room: Room
  readonly #clock: Clock
  /** By slot. */
  readonly #sending = new Map<number, Promise<void>>()
  /** While things are written once more: nothing else is sent. */
  #gate: Promise<void> | null = null

  constructor({ disk, memory, slots, unflushed, room, clock }: SendsOptions) {
    this.#disk = disk
    this.#memory = memory
    this.#slots = slots
    this.#unflushed = unflushed
    this.#room = room
    this.#clock = clock
  }

  /** While it is not null nothing may be sent, nor zeroed. */
  get gate(): Promise<void> | null {
    return this.#gate
  }

  /** Sends what is dirty now, and waits for what was being sent. @throws IO_ERROR */
  async writeBack(): Promise<void> {
    const begun = this.#clock.now()
    const slots = this.#unflushed.dirtySlots
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
    this.#room.drained(sent, this.#clock.now() - begun)
  }

  /** What is being sent of a range. */
  of(begin: number, end: number): Promise<void>[] {
    const sends: Promise<void>[] = []
    this.#slots.forEachIn(begin, end, slot => {
      const sending = this.#sending.get(slot)
      if (sending !== undefined) sends.push(sending)
    })
    return sends
  }

  /** Runs `work` when all that is being sent has ended, and lets nothing be sent before its end. */
  async alone(others: Iterable<Promise<void>>, work: () => Promise<void>): Promise<void> {
    let open = (): void => {}
    this.#gate = new Promise(resolve => {
      open = resolve
    })
    try {
      await Promise.allSettled([...this.#sending.values(), ...others])
      await work()
    } finally {
      this.#gate = null
      open()
    }
  }

  /** Sends the dirty pages of a slot. @returns bytes. @throws IO_ERROR; they are dirty again then */
  async #send(slot: number): Promise<number> {
    for (;;) {
      const sending = this.#sending.get(slot)
      if (sending !== undefined) await sending.catch(() => {})
      else if (this.#gate !== null) await this.#gate
      else break
    }
    if (this.#memory.dirty[slot] === 0) return 0
    const pages = this.#unflushed.beginSend(slot)
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
    let isSent = false
    try {
      await allEnded(writes)
      isSent = true
    } catch (err) {
      throw ioError(this.#disk.path, 'write', err)
    } finally {
      this.#sending.delete(slot)
      this.#unflushed.endSend(slot, isSent)
      this.#room.mayHaveGrown()
    }
  }
}
