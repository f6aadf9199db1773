import { closeSync, fstatSync, openSync, readSync } from 'node:fs'
import { ThinfsError, viewOf } from '../base/index.js'
import { RECORD_ENTRY, RECORDED, type RecordedKind } from './record-format.js'

/** Entries that are read at once. */
const WINDOW = 4096

const KINDS: readonly number[] = Object.values(RECORDED)

/** One entry. `offset` and `length` are bytes of the volume; see RECORD_ENTRY. */
export interface RecordEntry {
  kind: RecordedKind
  offset: number
  length: number
  at: number
}

/** Reads a recording, which may go on meanwhile. Entries are numbered from 1. */
export class RecordReader {
  /** Entries there were when it was opened. */
  readonly count: number
  readonly #path: string
  readonly #log: number
  readonly #data: number
  readonly #dataSize: number
  readonly #window = Buffer.alloc(WINDOW * RECORD_ENTRY.size)
  readonly #view = viewOf(this.#window)
  /** Number of the first entry in the window; 0 for none. */
  #first = 0

  /** @throws ENOENT, EACCES */
  constructor(log: string, data: string) {
    this.#path = log
    this.#log = openSync(log, 'r')
    // Before the data: what these entries lead to is there.
    this.count = Math.floor(fstatSync(this.#log).size / RECORD_ENTRY.size)
    try {
      this.#data = openSync(data, 'r')
    } catch (err) {
      closeSync(this.#log)
      throw err
    }
    this.#dataSize = fstatSync(this.#data).size
  }

  /** @throws IO_ERROR for one that nobody can have written */
  entry(number: number): RecordEntry {
    const inWindow = number - this.#first
    if (this.#first === 0 || inWindow < 0 || inWindow >= WINDOW) this.#load(number)
    const base = (number - this.#first) * RECORD_ENTRY.size
    const { kind, offset, length, at } = RECORD_ENTRY.read(this.#view, base)
    const hasBytes = kind === RECORDED.write || kind === RECORDED.mark
    if (!KINDS.includes(kind) || (hasBytes && at + length > this.#dataSize)) {
      throw new ThinfsError('IO_ERROR', `${this.#path}: entry ${number} is damaged`)
    }
    return { kind: kind as RecordedKind, offset, length, at }
  }

  /** Fills `length` bytes of `buffer` with what a write has at byte `at` of the data file. */
  data(buffer: Uint8Array, length: number, at: number): void {
    for (let done = 0; done < length; ) {
      const read = readSync(this.#data, buffer, done, length - done, at + done)
      if (read === 0) throw new ThinfsError('IO_ERROR', `${this.#path}: its data were cut off`)
      done += read
    }
  }

  /** The name of a mark. */
  mark({ length, at }: RecordEntry): string {
    const bytes = Buffer.alloc(length)
    this.data(bytes, length, at)
    return bytes.toString()
  }

  close(): void {
    closeSync(this.#data)
    closeSync(this.#log)
  }

  #load(number: number): void {
    const { size } = RECORD_ENTRY
    const most = Math.min(WINDOW, this.count - number + 1) * size
    for (let done = 0; done < most; ) {
      const at = (number - 1) * size + done
      const read = readSync(this.#log, this.#window, done, most - done, at)
      if (read === 0) throw new ThinfsError('IO_ERROR', `${this.#path}: it was cut off`)
      done += read
    }
    this.#first = number
  }
}
