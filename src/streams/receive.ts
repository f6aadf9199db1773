import { createHash } from 'node:crypto'
import { type Later, ThinfsError } from '../base/index.js'
import {
  checksumOf,
  KIND,
  MAGIC,
  MAX_DATA,
  MAX_STORED,
  PLAIN,
  parseHeader,
  RECORD_HEAD,
  type StreamHeader,
  ZSTD,
} from './format.js'
import { type Codec, loadZstd } from './zstd.js'

/** A volume to receive into. */
export interface ReceiveTarget {
  write(offset: number, content: Uint8Array): Later<void>
  /** Makes a range read as zeros, and gives its whole blocks back. */
  discard(offset: number, length: number): Later<void>
}

interface StreamRecord {
  kind: number
  offset: number
  length: number
  /** Decoded; empty for a discard. */
  content: Uint8Array
}

const DIGEST_SIZE = 32
const NOTHING = new Uint8Array(0)

/** Reads a stream, and believes nothing of it that it has not checked. */
export class StreamReader {
  readonly header: StreamHeader
  /** Bytes read so far. */
  get read(): number {
    return this.#input.read
  }
  readonly #input: ByteReader
  #codec: Codec | null = null
  #records = 1
  /** The lowest byte at which the next record may begin. */
  #offset = 0

  private constructor(input: ByteReader, header: StreamHeader) {
    this.#input = input
    this.header = header
    this.#offset = header.resume
  }

  /** Reads as far as the header. @throws BAD_STREAM */
  static async open(input: AsyncIterable<Uint8Array>): Promise<StreamReader> {
    const reader = new ByteReader(input)
    const magic = await reader.take(MAGIC.length)
    if (!magic.equals(MAGIC)) throw bad('it does not begin as a stream of thinfs send does')
    const { kind, payload } = await nextRecord(reader)
    const header = kind === KIND.header ? parseHeader(payload) : null
    if (header === null) throw bad('its header is none of version 1 or 2')
    return new StreamReader(reader, header)
  }

  /**
   * The records after the header. Ends when all of the stream was found whole.
   * @throws BAD_STREAM
   */
  async *records(): AsyncGenerator<StreamRecord> {
    const { size } = this.header
    for (;;) {
      const digest = this.#input.digest()
      const { kind, encoding, offset, length, payload } = await nextRecord(this.#input)
      if (kind === KIND.end) return await this.#mustEnd(digest, offset, payload)
      if (kind === KIND.checkpoint) {
        if (!payload.equals(digest) || offset !== this.#offset || length !== 0) {
          throw bad(`record ${this.#records}: what came before it is not what was sent`)
        }
        this.#records++
        yield { kind, offset, length, content: NOTHING }
        continue
      }
      const isData = kind === KIND.data && length <= MAX_DATA
      const isHole = kind === KIND.discard && payload.length === 0
      const isInPlace = length > 0 && offset >= this.#offset && offset + length <= size
      if (!isInPlace || !(isData || isHole)) {
        throw bad(`record ${this.#records}: kind ${kind} of ${length} bytes at ${offset}`)
      }
      this.#offset = offset + length
      this.#records++
      const content = isData ? await this.#decode(encoding, payload, length) : payload
      yield { kind, offset, length, content }
    }
  }

  async #decode(encoding: number, payload: Buffer, length: number): Promise<Uint8Array> {
    if (encoding === PLAIN && payload.length === length) return payload
    if (encoding !== ZSTD)
      throw bad(`${payload.length} bytes in encoding ${encoding} for ${length}`)
    this.#codec ??= await loadZstd()
    return this.#codec.decompress(payload, length)
  }

  async #mustEnd(digest: Buffer, records: number, payload: Buffer): Promise<void> {
    if (records !== this.#records || payload.length !== DIGEST_SIZE || !payload.equals(digest)) {
      throw bad('its checksum as a whole is wrong')
    }
    if (await this.#input.hasMore()) throw bad('something follows its end')
  }
}

/**
 * Puts all of a stream into a volume, which holds what the stream goes on from.
 * @param onProgress is told of the bytes of the volume that are behind, and of those read
 * @param onCheckpoint is told when so many bytes of the volume are as the stream has them
 * @throws BAD_STREAM: then what came after the last checkpoint is good for nothing
 */
export async function receiveInto(
  target: ReceiveTarget,
  reader: StreamReader,
  onProgress: (offset: number, read: number) => void,
  onCheckpoint: (offset: number) => Promise<void> = async () => {},
): Promise<void> {
  for await (const { kind, offset, length, content } of reader.records()) {
    if (kind === KIND.checkpoint) await onCheckpoint(offset)
    else if (kind === KIND.data) await target.write(offset, content)
    else await target.discard(offset, length)
    onProgress(offset + length, reader.read)
  }
}

async function nextRecord(reader: ByteReader) {
  const bytes = await reader.take(RECORD_HEAD.size)
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length)
  const { stored, csum, ...head } = RECORD_HEAD.read(view, 0)
  const at = reader.read - bytes.length
  if (stored > MAX_STORED) throw bad(`byte ${at}: a record of ${stored} bytes`)
  const payload = await reader.take(stored)
  if (checksumOf(bytes, payload) !== csum)
    throw bad(`byte ${at}: the checksum of a record is wrong`)
  return { ...head, payload }
}

/** So many bytes at a time, whatever pieces they come in. */
class ByteReader {
  read = 0
  readonly #input: AsyncIterator<Uint8Array>
  readonly #hash = createHash('sha256')
  #chunk: Uint8Array = new Uint8Array(0)

  constructor(input: AsyncIterable<Uint8Array>) {
    this.#input = input[Symbol.asyncIterator]()
  }

  /** @throws BAD_STREAM when the input ends before */
  async take(length: number): Promise<Buffer> {
    const taken = Buffer.allocUnsafe(length)
    for (let filled = 0; filled < length; ) {
      if (this.#chunk.length === 0 && !(await this.#next())) {
        throw bad(`it ends after ${this.read + filled} bytes, in the middle`)
      }
      const part = this.#chunk.subarray(0, length - filled)
      taken.set(part, filled)
      filled += part.length
      this.#chunk = this.#chunk.subarray(part.length)
    }
    this.read += length
    this.#hash.update(taken)
    return taken
  }

  /** The SHA-256 of all that was taken. */
  digest(): Buffer {
    return this.#hash.copy().digest()
  }

  async hasMore(): Promise<boolean> {
    return this.#chunk.length > 0 || (await this.#next())
  }

  async #next(): Promise<boolean> {
    for (;;) {
      const { value, done } = await this.#input.next()
      if (done) return false
      if (value.length === 0) continue
      this.#chunk = value
      return true
    }
  }
}

const bad = (what: string): ThinfsError => new ThinfsError('BAD_STREAM', `the stream: ${what}`)
