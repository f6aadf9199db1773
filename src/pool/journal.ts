/**
 * The journal: mapping changes since the last commit, so that they outlive the engine process.
 *
 * Acknowledged changes that are not committed sit in the heap of the engine. Before a reply goes
 * out, the changes behind it are appended here with one plain write: the page cache survives the
 * process. After a reboot the journal says nothing (it carries the boot id), and the pool is as of
 * its last commit, which is what dm-thin promises; so nothing is flushed, with one exception.
 *
 * The file is a sequence of frames. A BASE frame names the superblock (by SHA-256) that the changes
 * behind it build on; one is appended when a transaction is sealed, before its superblock can reach
 * the disk. So a reader finds the last BASE frame that names the superblock it sees, and replays
 * all changes after it: those of sealed transactions that did not become durable, too. A CLEAN
 * frame alone is what an orderly shutdown leaves: nothing to replay and every free data block is a
 * hole. This holds after a reboot too, so its replacement is flushed before a free block is written
 * to.
 *
 * A journal that cannot know the superblock it finds is evidence as well: somebody changed the
 * metadata since. BASE and CLEAN frames carry the transaction id and the time of their superblock,
 * so that metadata which went on (the kernel used the pool) differs from an older copy
 * (`doubtful`).
 */
import { isNoSpace } from '../base/index.js'
import { PendingChanges } from './journal-changes.js'
import {
  BASE,
  CHANGES,
  CLEAN,
  FRAME,
  frame,
  frames,
  identityOf,
  isNewer,
} from './journal-frames.js'
import { type JournalState, judge } from './journal-state.js'

/** The keeper of a journal: a small file that is appended to and now and then replaced. */
export interface JournalFile {
  /** Identifies the boot of the machine: what this boot wrote is in the page cache still. */
  readonly bootId: string
  readAll(): Buffer
  append(bytes: Uint8Array, length: number): void
  /** Cuts the file to `length` bytes, and reserves room for later appends. */
  cut(length: number): void
  /** Replaces the content atomically: a reader sees the old one or the new one. */
  replace(bytes: Uint8Array): void
  /** Resolves when the content survives a power cut. */
  sync(): Promise<void>
}

/** A frame without changes: what follows is there already. */
const REPETITION = frame(CHANGES, Buffer.alloc(0))

/** The file is rewritten without what is durable once it is larger than this. */
const REWRITE_SIZE = 8 * 1024 * 1024

export class Journal {
  readonly #file: JournalFile
  /** Changes to be written with the next `settle`. */
  readonly pending = new PendingChanges()
  #fileSize = 0
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

  /** Judges the pool whose superblock is `superblock` by the file. */
  read(superblock: Uint8Array): JournalState {
    return judge(this.#file.readAll(), this.#identity(superblock))
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
    return !this.pending.isEmpty || this.#lacking
  }

  /** Whether replies have to wait for pending changes: opens and closes alone need no wait. */
  get vital(): boolean {
    return this.pending.vital || this.#lacking
  }

  /** Whether the file can be appended to. */
  get sound(): boolean {
    return this.#broken === null
  }

  /** True when the file is about to be rewritten, once the transaction sealed next is durable. */
  get large(): boolean {
    return this.#fileSize >= REWRITE_SIZE
  }

  /**
   * Appends what is pending, with one write.
   * @throws when the file takes no more; the changes are then safe only with the next commit
   */
  settle(): void {
    if (!this.unsettled) return
    if (this.#broken) throw this.#broken
    this.#append(this.pending.frame())
    this.pending.clear()
  }

  /** Forgets what is pending: it was undone. */
  drop(): void {
    this.pending.clear()
    this.#lacking = false
  }

  /**
   * A transaction was sealed: what comes now builds on it. Call before its superblock is written.
   */
  sealed(superblock: Uint8Array): void {
    this.#generation++
    const base = frame(BASE, this.#identity(superblock))
    this.#baseLost = false
    try {
      this.settle()
      this.#append(base)
    } catch {
      this.#baseLost = true
      // A torn frame hides everything behind it: nothing more goes into this file. Pending changes
      // are in the sealed transaction; their replies wait until that is durable.
      this.#lacking ||= this.pending.vital
      this.pending.clear()
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
   * Names the superblock once more, now that it is durable: whoever finds an older one then knows
   * it. The changes behind it come along, for reading starts with the last frame that names the
   * superblock; and the repetition is announced, for a kill may leave the beginning of it alone.
   */
  #repeat(): void {
    const content = Buffer.concat([REPETITION, ...this.#tail])
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
    this.#tail = this.pending.isEmpty ? [base] : [base, this.pending.frame()]
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
    this.pending.clear()
  }

  /** Only the appended part counts, as in a new file. Without room for it, the file is emptied. */
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
    const age = { generation: this.#generation, labelled: this.#labelled }
    return identityOf(superblock, this.#file.bootId, age)
  }
}
