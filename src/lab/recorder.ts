import type { Later, Requester } from '../base/index.js'
import { RECORDED } from '../replay/index.js'
import type { RecordWriter } from './record-writer.js'
import { Through } from './through.js'

/**
 * A device whose changes are recorded, in the order in which they end, before they are
 * acknowledged: dm-log-writes. If the recording fails the device goes on without it, as there.
 */
export class Recorder extends Through {
  #writer: RecordWriter | null = null
  #failed: (why: string) => Promise<void> = async () => {}
  /**
   * Ends when it is settled that a recording has ended: nothing that it lacks is acknowledged
   * before.
   */
  #ending: Promise<void> | null = null

  /** @param failed notes that the recording has ended early; does not throw */
  start(writer: RecordWriter, failed: (why: string) => Promise<void>): void {
    this.#writer = writer
    this.#failed = failed
  }

  stop(): void {
    this.#writer = null
  }

  override write(
    offset: number,
    size: number,
    buffer: Uint8Array,
    at: number,
    requester?: Requester,
  ): Later<void> {
    const written = this.lower.write(offset, size, buffer, at, requester)
    if (written === undefined) return this.#wrote(offset, size, buffer, at)
    // The buffer is the caller's again when this returns.
    const held = Buffer.from(buffer.subarray(at, at + size))
    return written.then(() => this.#wrote(offset, size, held, 0))
  }

  override discard(
    offset: number,
    length: number,
    waits?: boolean,
    signal?: AbortSignal,
  ): Promise<void> {
    const discarded = this.lower.discard(offset, length, waits, signal)
    return this.#clear(RECORDED.discard, offset, length, discarded)
  }

  override zero(offset: number, length: number, signal?: AbortSignal): Promise<void> {
    return this.#clear(RECORDED.zero, offset, length, this.lower.zero(offset, length, signal))
  }

  override async flush(): Promise<void> {
    const covered = this.#writer?.count ?? 0
    const began = this.#writer
    await this.lower.flush()
    // A recording that has begun meanwhile knows nothing of what this flush made durable.
    if (began === this.#writer) await this.#note(writer => writer.flush(covered))
  }

  /** Notes a flush that was answered and not done. */
  ignoredFlush(): Later<void> {
    return this.#note(writer => writer.ignoredFlush())
  }

  mark(name: string): Later<void> {
    return this.#note(writer => writer.mark(name))
  }

  #wrote(offset: number, size: number, buffer: Uint8Array, at: number): Later<void> {
    return this.#note(writer => writer.write(offset, size, buffer, at))
  }

  async #clear(
    kind: typeof RECORDED.discard | typeof RECORDED.zero,
    offset: number,
    length: number,
    cleared: Later<void>,
  ): Promise<void> {
    try {
      await cleared
    } catch (err) {
      // Whole blocks may read as zeros by now, and the edges not.
      await this.#end(`a discard failed half-way: ${(err as Error).message}`)
      throw err
    }
    await this.#note(writer => writer.clear(kind, offset, length))
  }

  #note(note: (writer: RecordWriter) => void): Later<void> {
    if (this.#writer === null) return this.#ending ?? undefined
    try {
      note(this.#writer)
    } catch (err) {
      return this.#end(`the log cannot be written: ${(err as Error).message}`)
    }
  }

  async #end(why: string): Promise<void> {
    if (this.#writer !== null) {
      this.#writer = null
      this.#ending = this.#failed(why).finally(() => {
        this.#ending = null
      })
    }
    await this.#ending
  }
}
