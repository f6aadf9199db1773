/**
 * The journal: mapping changes since the last commit, so that they outlive the engine process.
 *
 * What was acknowledged but not committed sits in the heap of the engine. Before a reply goes out,
 * the changes behind it are appended here with one plain write: the page cache survives the process.
 * After a reboot the journal says nothing (it carries the boot id), and the pool is as of its last
 * commit, which is what dm-thin promises; so nothing is flushed, with one exception.
 *
 * The file is a sequence of frames. A BASE frame names the superblock (by SHA-256) that the changes
 * behind it build on; one is appended when a transaction is sealed, before its superblock can reach
 * the disk. So a reader finds the last BASE frame that names the superblock it sees, and replays all
 * changes after it: those of sealed transactions that did not become durable, too.
 * A CLEAN frame alone is what an orderly shutdown leaves: nothing to replay and every free data
 * block is a hole. That is good after a reboot, too, and so its replacement is flushed before a free
 * block is written to.
 *
 * A journal that cannot know the superblock it finds is evidence as well: somebody changed the
 * metadata since. BASE and CLEAN frames carry the transaction id and the time of their superblock, so
 * that metadata which went on (the kernel used the pool) differs from an older copy (`doubtful`).
 */
import { createHash } from 'node:crypto'
import { crc32c } from '@node-rs/crc32'
import {
  type Bytes,
  type DataBlock,
  type DevId,
  isNoSpace,
  layout,
  readU64,
  ThinfsError,
  type VirtualBlock,
  writeU64,
} from '../base/index.js'
import { SUPERBLOCK } from '../metadata/index.js'

/** Where a journal is kept: a small file that is appended to and now and then replaced. */
export interface JournalFile {
  /** Identifies the boot of the machine: what this boot wrote is in the page cache still. */
  readonly bootId: string
  readAll(): Buffer
  append(bytes: Uint8Array, length: number): void
  /** Takes away what is behind `length` bytes, and sets room aside for what comes. */
  cut(length: number): void
  /** Replaces the content. What a reader sees at any moment is the old or the new. */
  replace(bytes: Uint8Array): void
  /** Resolves when the content is what a power cut leaves, too. */
  sync(): Promise<void>
}

export const FRAME = layout('JournalFrame', 16, {
  magic: [0, 'u32', 'FRAME_MAGIC'],
  kind: [4, 'u32', '1 BASE, 2 CHANGES, 3 CLEAN'],
  length: [8, 'u32', 'bytes of the payload that follows'],
  csum: [12, 'u32', 'CRC-32C of the payload'],
})
export const CHANGE = layout('JournalChange', 32, {
  kind: [0, 'u32', '1 map, 2 unmap, 3 mark shared, 4 extend, 5 open, 6 close'],
  time: [4, 'u32', 'map: time of the mapping'],
  devId: [8, 'u64', 'thin device'],
  first: [
    16,
    'u64',
    'map: virtual block; unmap: begin; mark shared: other device; extend: size; open, close: handle',
  ],
  second: [24, 'u64', 'map: data block; unmap: end'],
})
/** Payload of BASE and CLEAN frames: which superblock, and who had it when. */
export const IDENTITY = layout('JournalIdentity', 96, {
  bootId: [0, 'bytes:36', 'boot of the machine, from proc(5)'],
  hash: [36, 'bytes:32', 'SHA-256 of the superblock'],
  transactionId: [68, 'u64', 'of the superblock'],
  time: [76, 'u32', 'of the superblock'],
  generation: [80, 'u64', 'commits up to the superblock'],
  labelled: [88, 'u64', 'the generation that the label of the data had by then, at least'],
})

const FRAME_MAGIC = 0x4a_6e_68_74
const BASE = 1
const CHANGES = 2
const CLEAN = 3
const MAP = 1
const UNMAP = 2
const MARK_SHARED = 3
const EXTEND = 4
const OPEN = 5
const CLOSE = 6
const HASH_AT = IDENTITY.at.hash
const HASH_END = IDENTITY.at.transactionId
const SUPERBLOCK_END = IDENTITY.at.generation

/** The file is rewritten without what is durable once it is larger than this. */
const REWRITE_SIZE = 8 * 1024 * 1024

/** What replays a journal. */
export interface ChangeTarget {
  map(devId: DevId, vblock: VirtualBlock, dataBlock: DataBlock, time: number): void
  unmap(devId: DevId, begin: VirtualBlock, end: VirtualBlock): void
  markShared(one: DevId, other: DevId): void
  extend(devId: DevId, size: Bytes): void
  open(devId: DevId, handle: number): void
  close(devId: DevId, handle: number): void
}

/** What a journal says about a superblock. */
export interface JournalState {
  /** Orderly shutdown of exactly this superblock: every free data block is a hole. */
  clean: boolean
  /** It was thinfs, in this boot or before, that wrote this superblock or had opened it. */
  known: boolean
  /** The last process to write the journal ended with an orderly shutdown, of whatever superblock. */
  saysClean: boolean
  /**
   * Another program changed the metadata since thinfs had it, and nothing says that it is newer now: it
   * may be an older copy that was put back. After a power cut a journal that does not know the
   * superblock says nothing, unless it is CLEAN.
   */
  doubtful: boolean
  /**
   * The superblock is from before a change of the devices, or of names, that was durable: an older copy
   * was put back. What came since cannot be replayed on it.
   */
  older: boolean
  /**
   * The last generation that the file speaks of, which is that of the superblock or the one after it. Where
   * a power cut may have taken the end of the file: the last that it gives this superblock, null for none.
   */
  generation: number | null
  /** The generation that the label of the data has, at least; 0 where that is not known. */
  labelled: number
  /** Frames of changes to replay on top of it. */
  changes: readonly Buffer[]
}

export class Journal {
  readonly #file: JournalFile
  #pending = Buffer.alloc(64 * 1024)
  #view = new DataView(this.#pending.buffer)
  #used: number = FRAME.size
  #fileSize = 0
  /** Whether more is pending than how often devices are open. */
  #vital = false
  /** Content that builds on the transaction sealed last, kept until that is durable. */
  #tail: Buffer[] = []
  #tailSize = 0
  /** Why the file cannot be appended to; null when it can. */
  #broken: unknown = null
  /** Whether the file lacks changes of the transaction sealed last, which is not durable. */
  #lacking = false
  /** Whether it lacks the frame that names this transaction. */
  #baseLost = false
  /** Identity of the superblock that was durable last; null until one is. */
  #last: Buffer | null = null
  /** Commits up to the superblock that was sealed last. */
  #generation = 0
  #labelled = 0

  constructor(file: JournalFile) {
    this.#file = file
  }

  /** What the file says about the pool whose superblock is `superblock`. */
  read(superblock: Uint8Array): JournalState {
    const wanted = this.#identity(superblock)
    let clean = false
    let known = false
    let found = false
    let saysClean = false
    let last: Buffer | null = null
    let naming: Buffer | null = null
    let newer: Buffer[] = []
    let lacksDurable = false
    let changes: Buffer[] = []
    for (const { kind, payload } of frames(this.#file.readAll())) {
      saysClean = kind === CLEAN
      if (kind === CHANGES) {
        clean = false
        if (found) changes.push(payload)
        continue
      }
      last = payload
      if (sameHash(payload, wanted)) {
        known = true
        naming = payload
        newer = []
        lacksDurable = false
      } else if (known && isNewer(payload, wanted)) {
        lacksDurable ||= newer.some(other => other.equals(payload))
        newer.push(payload)
      }
      if (kind === CLEAN) {
        // Of another boot, too: an orderly shutdown flushed everything.
        clean = sameHash(payload, wanted)
        if (clean) changes = []
      } else {
        clean = false
        if (payload.compare(wanted, 0, SUPERBLOCK_END, 0, SUPERBLOCK_END) === 0) {
          found = true
          changes = []
        }
      }
    }
    const counts = saysClean || (last !== null && sameBoot(last, wanted))
    const doubtful = !known && counts && !isNewer(wanted, last!)
    // A frame may be of a transaction that its process died of, or that was undone; the same one is
    // written once more when it is durable. So is a CLEAN one.
    const older = lacksDurable || (saysClean && isNewer(last!, wanted))
    const labelled = counts && last !== null ? ageOf(last).labelled : 0
    const telling = counts ? last : naming
    const generation = telling === null ? null : ageOf(telling).generation
    return { clean, known, saysClean, doubtful, older, generation, labelled, changes }
  }

  /** Commits up to the superblock that was sealed last. */
  get generation(): number {
    return this.#generation
  }

  /** Goes on from a generation. */
  goOnFrom(generation: number): void {
    this.#generation = generation
  }

  /** The label of the data has the generation of the superblock that was sealed last. */
  wasLabelled(): void {
    this.#labelled = this.#generation
  }

  /** True while changes are noted that a death of this process would lose. */
  get unsettled(): boolean {
    return this.#used > FRAME.size || this.#lacking
  }

  /** Whether what is noted has to be safe before it is replied to: how often a device is open need not be. */
  get vital(): boolean {
    return this.#vital || this.#lacking
  }

  /** Whether the file can be appended to. */
  get sound(): boolean {
    return this.#broken === null
  }

  /** True when the file is about to be rewritten, once the transaction sealed next is durable. */
  get large(): boolean {
    return this.#fileSize >= REWRITE_SIZE
  }

  map(devId: number, vblock: number, dataBlock: number, time: number): void {
    this.#change(MAP, time, devId, vblock, dataBlock)
  }

  unmap(devId: number, begin: number, end: number): void {
    this.#change(UNMAP, 0, devId, begin, end)
  }

  markShared(one: number, other: number): void {
    this.#change(MARK_SHARED, 0, one, other, 0)
  }

  extend(devId: number, size: number): void {
    this.#change(EXTEND, 0, devId, size, 0)
  }

  open(devId: number, handle: number): void {
    this.#change(OPEN, 0, devId, handle, 0)
  }

  close(devId: number, handle: number): void {
    this.#change(CLOSE, 0, devId, handle, 0)
  }

  /**
   * Appends what is pending, with one write.
   * @throws when the file takes no more; the changes are then safe only with the next commit
   */
  settle(): void {
    if (!this.unsettled) return
    if (this.#broken) throw this.#broken
    this.#append(this.#pendingFrame())
    this.#emptied()
  }

  /** Forgets what is pending: it was undone. */
  drop(): void {
    this.#emptied()
    this.#lacking = false
  }

  /** A transaction was sealed: what comes now builds on it. Call before its superblock is written. */
  sealed(superblock: Uint8Array): void {
    this.#generation++
    const base = frame(BASE, this.#identity(superblock))
    this.#baseLost = false
    try {
      this.settle()
      this.#append(base)
    } catch {
      this.#baseLost = true
      // A torn frame hides what is behind it: nothing more goes into this file. What is pending is
      // in the sealed transaction; its replies wait until that is durable.
      this.#lacking ||= this.#vital
      this.#emptied()
    }
    this.#tail = [base]
    this.#tailSize = base.length
  }

  /** The transaction sealed last is durable: what came before it is not needed any more. */
  durable(): void {
    this.#lacking = false
    const before = this.#last
    this.#last = this.#tail[0]!.subarray(FRAME.size)
    if (this.#broken === null && !this.large) {
      if (before !== null && isNewer(this.#last, before)) this.#repeat()
      return
    }
    try {
      this.#file.replace(Buffer.concat(this.#tail))
      this.#fileSize = this.#tailSize
      this.#broken = null
    } catch (err) {
      this.#broken = err
      if (isNoSpace(err)) this.#mend()
      if (this.#broken !== null) this.#forsake()
    }
  }

  /**
   * Names the superblock once more, now that it is durable: whoever finds an older one then knows it. The
   * changes behind it come along, for reading starts with the last frame that names the superblock.
   */
  #repeat(): void {
    const content = Buffer.concat(this.#tail)
    try {
      this.#file.append(content, content.length)
      this.#fileSize += content.length
    } catch (err) {
      this.#broken = err
    }
  }

  /** Goes on with the file that there is, in the room that it has: there is none for another. */
  #mend(): void {
    try {
      if (!this.#baseLost) this.#file.cut(this.#fileSize)
      else this.#restart(Buffer.concat(this.#tail))
      this.#broken = null
    } catch (err) {
      this.#broken = err
    }
  }

  /** Empties a file that speaks of a superblock that is no more: to say nothing takes no room. */
  #forsake(): void {
    try {
      this.#file.cut(0)
      this.#fileSize = 0
      this.#baseLost = true
    } catch {}
  }

  /** Writes the file anew in its own room: all that it has is durable. */
  #restart(content: Buffer): void {
    this.#file.cut(0)
    this.#file.append(content, content.length)
    this.#fileSize = content.length
    this.#baseLost = false
  }

  /** Takes over the file of an earlier process: appends to what can be read of it. */
  resume(): void {
    const file = this.#file.readAll()
    let end = 0
    for (const { payload } of frames(file)) end += FRAME.size + payload.length
    this.#file.cut(end)
    this.#fileSize = end
  }

  /** Starts afresh on a superblock that is durable, with what is pending. */
  begin(superblock: Uint8Array): void {
    const base = frame(BASE, this.#identity(superblock))
    this.#tail = this.#used > FRAME.size ? [base, this.#pendingFrame()] : [base]
    this.#last = base.subarray(FRAME.size)
    const content = Buffer.concat(this.#tail)
    this.#tailSize = content.length
    this.#broken = null
    this.#baseLost = false
    try {
      this.#file.replace(content)
      this.#fileSize = content.length
    } catch (err) {
      if (!isNoSpace(err)) throw err
      this.#beginInPlace(content, err)
    }
    this.#emptied()
  }

  /** What is appended counts alone, as in a new file; without room for it, nothing that is there does. */
  #beginInPlace(content: Buffer, cause: unknown): void {
    try {
      this.#file.append(content, content.length)
      this.#fileSize += content.length
    } catch {
      try {
        this.#restart(content)
      } catch {
        this.#broken = cause
        this.#baseLost = true
      }
    }
  }

  /** Makes the file as it is now outlast a power cut. */
  sync(): Promise<void> {
    return this.#file.sync()
  }

  /** Orderly shutdown: everything is durable, every free data block is a hole. */
  end(superblock: Uint8Array): void {
    const clean = frame(CLEAN, this.#identity(superblock))
    try {
      this.#file.replace(clean)
    } catch (err) {
      if (!isNoSpace(err)) throw err
      this.#file.append(clean, clean.length)
    }
  }

  /** Nothing is pending any more. */
  #emptied(): void {
    this.#used = FRAME.size
    this.#vital = false
  }

  /** A copy of what is pending, as a frame. */
  #pendingFrame(): Buffer {
    writeFrame(this.#pending, CHANGES, this.#used - FRAME.size)
    return Buffer.from(this.#pending.subarray(0, this.#used))
  }

  #append(bytes: Buffer): void {
    try {
      this.#file.append(bytes, bytes.length)
    } catch (err) {
      this.#broken = err
      throw err
    }
    this.#tail.push(bytes)
    this.#tailSize += bytes.length
    this.#fileSize += bytes.length
  }

  #identity(superblock: Uint8Array): Buffer {
    const identity = Buffer.alloc(IDENTITY.size)
    identity.write(this.#file.bootId.padEnd(36).slice(0, 36), IDENTITY.at.bootId)
    createHash('sha256').update(superblock).digest().copy(identity, HASH_AT)
    const { transactionId, time } = SUPERBLOCK.read(viewOf(superblock), 0)
    const [generation, labelled] = [this.#generation, this.#labelled]
    IDENTITY.write(viewOf(identity), 0, { transactionId, time, generation, labelled })
    return identity
  }

  #change(kind: number, time: number, devId: number, first: number, second: number): void {
    if (kind !== OPEN && kind !== CLOSE) this.#vital = true
    if (this.#used + CHANGE.size > this.#pending.length) this.#enlarge()
    const at = this.#used
    this.#view.setUint32(at + CHANGE.at.kind, kind, true)
    this.#view.setUint32(at + CHANGE.at.time, time, true)
    writeU64(this.#view, at + CHANGE.at.devId, devId)
    writeU64(this.#view, at + CHANGE.at.first, first)
    writeU64(this.#view, at + CHANGE.at.second, second)
    this.#used = at + CHANGE.size
  }

  #enlarge(): void {
    const larger = Buffer.alloc(this.#pending.length * 2)
    this.#pending.copy(larger, 0, 0, this.#used)
    this.#pending = larger
    this.#view = new DataView(larger.buffer)
  }
}

/** Replays frames of changes in order. @throws POOL_MISMATCH for a change that is not known */
export function replay(changes: readonly Buffer[], target: ChangeTarget): void {
  for (const payload of changes) {
    const view = viewOf(payload)
    for (let at = 0; at + CHANGE.size <= payload.length; at += CHANGE.size) {
      const kind = view.getUint32(at + CHANGE.at.kind, true)
      const devId = readU64(view, at + CHANGE.at.devId) as DevId
      const first = readU64(view, at + CHANGE.at.first)
      const second = readU64(view, at + CHANGE.at.second)
      const time = view.getUint32(at + CHANGE.at.time, true)
      if (kind === MAP) target.map(devId, first as VirtualBlock, second as DataBlock, time)
      else if (kind === UNMAP) target.unmap(devId, first as VirtualBlock, second as VirtualBlock)
      else if (kind === MARK_SHARED) target.markShared(devId, first as DevId)
      else if (kind === EXTEND) target.extend(devId, first as Bytes)
      else if (kind === OPEN) target.open(devId, first)
      else if (kind === CLOSE) target.close(devId, first)
      else throw new ThinfsError('POOL_MISMATCH', `change of kind ${kind}, wanted 1 to ${CLOSE}`)
    }
  }
}

/**
 * The frames up to the first that is torn or damaged: what came after it was never replied to.
 * @throws POOL_MISMATCH for a sound frame of a kind that is not known: a later thinfs wrote it
 */
function* frames(file: Buffer): Generator<{ kind: number; payload: Buffer }> {
  const view = viewOf(file)
  for (let at = 0; at + FRAME.size <= file.length; ) {
    const { magic, kind, length, csum } = FRAME.read(view, at)
    const payload = file.subarray(at + FRAME.size, at + FRAME.size + length)
    if (magic !== FRAME_MAGIC || payload.length !== length || crc32c(payload) !== csum) return
    // A header of which a power cut left the beginning alone is sound by accident.
    if (kind < BASE) return
    if (kind > CLEAN) {
      throw new ThinfsError('POOL_MISMATCH', `the journal has a frame of kind ${kind}`)
    }
    if (kind !== CHANGES && length !== IDENTITY.size) return
    yield { kind, payload }
    at += FRAME.size + length
  }
}

function frame(kind: number, payload: Buffer): Buffer {
  const out = Buffer.concat([Buffer.alloc(FRAME.size), payload])
  writeFrame(out, kind, payload.length)
  return out
}

/** Fills in the header of a frame whose payload is in place behind it. */
function writeFrame(out: Buffer, kind: number, length: number): void {
  const csum = crc32c(out.subarray(FRAME.size, FRAME.size + length))
  FRAME.write(viewOf(out), 0, { magic: FRAME_MAGIC, kind, length, csum })
}

const sameBoot = (one: Buffer, other: Buffer): boolean =>
  one.compare(other, 0, HASH_AT, 0, HASH_AT) === 0

const sameHash = (one: Buffer, other: Buffer): boolean =>
  one.compare(other, HASH_AT, HASH_END, HASH_AT, HASH_END) === 0

/** Whether `one` is of a superblock that can only have come after that of `other`. */
function isNewer(one: Buffer, other: Buffer): boolean {
  const [a, b] = [ageOf(one), ageOf(other)]
  if (a.transactionId < b.transactionId || a.time < b.time) return false
  return a.transactionId > b.transactionId || a.time > b.time
}

const ageOf = (identity: Buffer) => IDENTITY.read(viewOf(identity), 0)

const viewOf = (buffer: Uint8Array): DataView =>
  new DataView(buffer.buffer, buffer.byteOffset, buffer.length)
