/**
 * A small text on a disk that another machine has, always replaced as a whole: a reader finds the
 * old content or the new one, after a power cut of that machine too.
 *
 * The disk has two slots, which are written in turns, and each write is flushed before the next.
 * The younger slot that is whole counts; docs/FORMAT.md#state-disk has the places. The page before
 * the slots has the journal between two mounts. What comes first belongs to others: who has the
 * pool.
 */
import { crc32c } from '@node-rs/crc32'
import { assert, isZero, KIB, layout, MIB, PAGE_SIZE, ThinfsError } from '../base/index.js'
import { ioError } from '../storage/index.js'
import type { RemoteDisk } from './remote-disk.js'

/** Bytes of a slot, and where the first one begins. */
const SLOT = 4 * MIB
const SLOTS_AT = MIB
const NR_SLOTS = 2
const JOURNAL_AT = SLOTS_AT - PAGE_SIZE
/** Bytes that the disk has at least. */
export const STATE_SIZE_MIN = SLOTS_AT + NR_SLOTS * SLOT

/** The letters tfst. */
const MAGIC = 0x74_73_66_74
const VERSION = 1
/**
 * The header that a slot begins with, in a page of its own, little-endian.
 * docs/FORMAT.md#state-disk
 */
export const STATE_SLOT = layout('StateSlot', 32, {
  csum: [0, 'u32', 'CRC-32C of bytes 4..32'],
  magic: [4, 'u32', 'the letters tfst'],
  version: [8, 'u32', '1'],
  length: [12, 'u32', 'bytes of the content, which begins 4096 bytes behind'],
  generation: [16, 'u64', 'counts replacements: the younger slot counts'],
  contentCsum: [24, 'u32', 'CRC-32C of the content'],
  pad0: [28, 'u32', 'zero'],
})
/** What a page with the journal begins with; its content follows. docs/FORMAT.md#state-disk */
export const STATE_JOURNAL = layout('StateJournal', 16, {
  csum: [0, 'u32', 'CRC-32C of the rest of the page'],
  magic: [4, 'u32', 'the letters tfsj'],
  version: [8, 'u32', '1'],
  length: [12, 'u32', 'bytes of the journal, which follow'],
})
/** The letters tfsj. */
const JOURNAL_MAGIC = 0x6a_73_66_74
/** Bytes of content that a slot takes. */
const CONTENT_MAX = SLOT - PAGE_SIZE
/** Bytes of a request to read. */
const REQUEST = 256 * KIB

interface Slot {
  generation: number
  content: Buffer
}

export class StateDisk {
  readonly path: string
  /** The journal that was kept last; empty for a page that is damaged, null for one of zeros. */
  journal: Buffer | null = null
  readonly journalMax = PAGE_SIZE - STATE_JOURNAL.size
  readonly #disk: RemoteDisk
  #content: Buffer | null
  #generation: number
  /** The slot that has the content; -1: none does. */
  #slot: number
  /** The last replacement. */
  #replaced: Promise<void> = Promise.resolve()

  /**
   * Reads the content.
   * @throws POOL_MISMATCH where the slots hold something, and nothing whole; BAD_ARGUMENT for a
   *   disk that is too small; IO_ERROR
   */
  static async open(disk: RemoteDisk): Promise<StateDisk> {
    if (disk.size < STATE_SIZE_MIN) {
      const detail = `${disk.path}: ${disk.size} bytes, the state takes ${STATE_SIZE_MIN} (9M)`
      throw new ThinfsError('BAD_ARGUMENT', detail)
    }
    const state = new StateDisk(disk)
    state.journal = decodeJournal(await readAt(disk, JOURNAL_AT, PAGE_SIZE))
    let isUsed = false
    for (let nr = 0; nr < NR_SLOTS; nr++) {
      const slot = await readSlot(disk, nr)
      isUsed ||= slot !== null
      if (slot === null || slot === 'torn' || slot.generation <= state.#generation) continue
      state.#content = slot.content
      state.#generation = slot.generation
      state.#slot = nr
    }
    if (isUsed && state.#content === null) {
      const what = 'no slot of names and sizes is whole: it is not the state of a pool, or damaged'
      throw new ThinfsError('POOL_MISMATCH', `${disk.path}: ${what}`)
    }
    return state
  }

  private constructor(disk: RemoteDisk) {
    this.path = disk.path
    this.#disk = disk
    this.#content = null
    this.#generation = 0
    this.#slot = -1
  }

  get isEmpty(): boolean {
    return this.#content === null
  }

  /**
   * The content; null when there is none yet.
   * @param most bytes that it may have
   * @throws BAD_ARGUMENT for a larger one
   */
  read(most: number): string | null {
    if (this.#content === null) return null
    if (this.#content.length > most) {
      throw new ThinfsError('BAD_ARGUMENT', `${this.#content.length} bytes are too many`)
    }
    return this.#content.toString('utf8')
  }

  /**
   * Durable when it resolves.
   * @throws IO_ERROR, also EFBIG for what has no room
   */
  replace(content: string | Uint8Array): Promise<void> {
    const bytes = Buffer.from(content)
    const replacing = this.#replaced.then(() => this.#replace(bytes))
    this.#replaced = replacing.catch(() => {})
    return replacing
  }

  /**
   * Keeps the journal for the next mount; durable when it resolves.
   * @param content null: there is none
   * @throws IO_ERROR
   */
  async keepJournal(content: Uint8Array | null): Promise<void> {
    await this.#writeFlushed(encodeJournal(content), JOURNAL_AT)
    this.journal = content && Buffer.from(content)
  }

  /** Both slots have room as it is. */
  async reserve(): Promise<void> {}

  /** Ends the connection. */
  close(): void {
    this.#disk.close()
  }

  async #replace(content: Buffer): Promise<void> {
    if (content.length > CONTENT_MAX) {
      const what = `names and sizes of the volumes have ${content.length} bytes`
      const detail = `${this.path}: ${what}, a slot has ${CONTENT_MAX}: there are too many volumes`
      throw new ThinfsError('IO_ERROR', detail, { errno: 'EFBIG' })
    }
    const nr = (this.#slot + 1) % NR_SLOTS
    const generation = this.#generation + 1
    const image = encodeSlot({ generation, content })
    await this.#writeFlushed(image, placeOf(nr))
    this.#content = content
    this.#generation = generation
    this.#slot = nr
  }

  async #writeFlushed(image: Uint8Array, offset: number): Promise<void> {
    try {
      // Writes of a connection that is lost may be lost with it.
      for (let epoch = -1; epoch !== this.#disk.epoch; ) {
        epoch = this.#disk.epoch
        await this.#disk.write(image, offset)
        await this.#disk.flush()
      }
    } catch (err) {
      throw ioError(this.path, 'write', err)
    }
  }
}

const placeOf = (nr: number): number => SLOTS_AT + nr * SLOT

function encodeJournal(content: Uint8Array | null): Buffer {
  const page = Buffer.alloc(PAGE_SIZE)
  if (content === null) return page
  const view = new DataView(page.buffer, page.byteOffset, PAGE_SIZE)
  const fields = { magic: JOURNAL_MAGIC, version: VERSION, length: content.length }
  STATE_JOURNAL.write(view, 0, fields)
  page.set(content, STATE_JOURNAL.size)
  STATE_JOURNAL.write(view, 0, { csum: crc32c(page.subarray(STATE_JOURNAL.at.magic)) })
  return page
}

function decodeJournal(page: Buffer): Buffer | null {
  if (isZero(page)) return null
  const view = new DataView(page.buffer, page.byteOffset, PAGE_SIZE)
  const { csum, magic, version, length } = STATE_JOURNAL.read(view, 0)
  const isOurs = magic === JOURNAL_MAGIC && version === VERSION
  const isWhole = isOurs && csum === crc32c(page.subarray(STATE_JOURNAL.at.magic))
  return page.subarray(STATE_JOURNAL.size, STATE_JOURNAL.size + (isWhole ? length : 0))
}

/** Whole pages. */
function encodeSlot({ generation, content }: Slot): Buffer {
  const pages = Math.ceil(content.length / PAGE_SIZE)
  const image = Buffer.alloc(PAGE_SIZE + pages * PAGE_SIZE)
  content.copy(image, PAGE_SIZE)
  const view = new DataView(image.buffer, image.byteOffset, PAGE_SIZE)
  const fields = { magic: MAGIC, version: VERSION, length: content.length, generation }
  STATE_SLOT.write(view, 0, { ...fields, contentCsum: crc32c(content), pad0: 0 })
  STATE_SLOT.write(view, 0, { csum: headCsum(image) })
  return image
}

const headCsum = (image: Buffer): number =>
  crc32c(image.subarray(STATE_SLOT.at.magic, STATE_SLOT.size))

/** @returns null for a slot of zeros, which was never written. @throws IO_ERROR */
async function readSlot(disk: RemoteDisk, nr: number): Promise<Slot | 'torn' | null> {
  const head = await readAt(disk, placeOf(nr), PAGE_SIZE)
  const view = new DataView(head.buffer, head.byteOffset, PAGE_SIZE)
  const { csum, magic, version, length, generation, contentCsum } = STATE_SLOT.read(view, 0)
  const isOurs = magic === MAGIC && version === VERSION && csum === headCsum(head)
  if (!isOurs || length > CONTENT_MAX) return isZero(head) ? null : 'torn'
  const pages = Math.ceil(length / PAGE_SIZE)
  const content = await readAt(disk, placeOf(nr) + PAGE_SIZE, pages * PAGE_SIZE)
  const found = content.subarray(0, length)
  return crc32c(found) === contentCsum ? { generation, content: found } : 'torn'
}

async function readAt(disk: RemoteDisk, offset: number, length: number): Promise<Buffer> {
  const content = Buffer.alloc(length)
  assert(offset + length <= disk.size, 'a slot is on the disk')
  try {
    for (let at = 0; at < length; at += REQUEST) {
      await disk.read(content.subarray(at, Math.min(length, at + REQUEST)), offset + at)
    }
  } catch (err) {
    throw ioError(disk.path, `read of ${length} bytes at ${offset}`, err)
  }
  return content
}
