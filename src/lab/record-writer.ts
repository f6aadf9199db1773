import { closeSync, constants, fstatSync, fsync, ftruncateSync, openSync, rmSync } from 'node:fs'
import { promisify } from 'node:util'
import { viewOf } from '../base/index.js'
import { native } from '../native.js'
import { RECORD_ENTRY, RECORDED, type RecordedKind, recordingFiles } from '../replay/index.js'
import type { HeldFolder } from '../storage/index.js'

const fsyncLater = promisify(fsync)
const { O_RDWR, O_CREAT, O_TRUNC, O_NOFOLLOW } = constants

/**
 * Appends to a recording. The writes of a call survive the death of this process; an entry is there
 * only when the bytes that it leads to are.
 */
export class RecordWriter {
  readonly #log: number
  readonly #data: number
  readonly #entry = Buffer.alloc(RECORD_ENTRY.size)
  readonly #view = viewOf(this.#entry)
  #count: number
  /** The place of the next bytes in the data file. */
  #end: number

  private constructor(folder: HeldFolder, id: number, flags: number) {
    const { log, data } = recordingFiles(id)
    this.#log = openSync(folder.file(log)[1], flags | O_RDWR | O_NOFOLLOW, 0o600)
    try {
      this.#data = openSync(folder.file(data)[1], flags | O_RDWR | O_NOFOLLOW, 0o600)
    } catch (err) {
      closeSync(this.#log)
      throw err
    }
    this.#count = Math.floor(fstatSync(this.#log).size / RECORD_ENTRY.size)
    this.#end = fstatSync(this.#data).size
  }

  /** Begins a recording: what is left of one with its number goes. */
  static create(folder: HeldFolder, id: number): RecordWriter {
    return new RecordWriter(folder, id, O_CREAT | O_TRUNC)
  }

  /** Goes on behind the last whole entry. @throws ENOENT where one of the files is not there */
  static resume(folder: HeldFolder, id: number): RecordWriter {
    const writer = new RecordWriter(folder, id, 0)
    ftruncateSync(writer.#log, writer.#count * RECORD_ENTRY.size)
    return writer
  }

  /** Removes the files of a recording. */
  static remove(folder: HeldFolder, id: number): void {
    for (const name of Object.values(recordingFiles(id))) {
      rmSync(folder.file(name)[1], { force: true })
    }
  }

  /** Entries so far. */
  get count(): number {
    return this.#count
  }

  /** Notes `size` bytes of `buffer` from `at`, written to byte `offset`. */
  write(offset: number, size: number, buffer: Uint8Array, at: number): void {
    native.file_write(this.#data, buffer, at, size, this.#end)
    this.#append(RECORDED.write, offset, size, this.#end)
    this.#end += size
  }

  /** Notes that a range reads as zeros now. */
  clear(kind: typeof RECORDED.discard | typeof RECORDED.zero, offset: number, size: number): void {
    this.#append(kind, offset, size, 0)
  }

  /** @param covered how many entries there were when the flush began: those it has made durable */
  flush(covered: number): void {
    this.#append(RECORDED.flush, 0, 0, covered)
  }

  ignoredFlush(): void {
    this.#append(RECORDED.ignoredFlush, 0, 0, 0)
  }

  mark(name: string): void {
    const bytes = Buffer.from(name)
    native.file_write(this.#data, bytes, 0, bytes.length, this.#end)
    this.#append(RECORDED.mark, 0, bytes.length, this.#end)
    this.#end += bytes.length
  }

  /** Makes the recording durable. */
  async sync(): Promise<void> {
    await fsyncLater(this.#data)
    await fsyncLater(this.#log)
  }

  close(): void {
    closeSync(this.#data)
    closeSync(this.#log)
  }

  #append(kind: RecordedKind, offset: number, length: number, at: number): void {
    RECORD_ENTRY.write(this.#view, 0, { kind, offset, length, at })
    const { size } = RECORD_ENTRY
    native.file_write(this.#log, this.#entry, 0, size, this.#count * size)
    this.#count++
  }
}
