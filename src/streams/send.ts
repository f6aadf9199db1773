import { createHash } from 'node:crypto'
import { bytes, ThinfsError } from '../base/index.js'
import { MetadataView } from '../metadata/index.js'
import type { DataStore, Store } from '../storage/index.js'
import {
  CHECKPOINT_PERIOD,
  encodeHead,
  KIND,
  MAGIC,
  MAX_DATA,
  PLAIN,
  type RecordHead,
  type StreamHeader,
  ZSTD,
} from './format.js'
import { type Codec, loadZstd } from './zstd.js'

/**
 * Fills `length` bytes of a buffer from `filled` on with what a volume maps.
 * @param at where that is in the pool's data
 * @param offset where it is in the volume
 */
export type ReadMapped = (
  buffer: Buffer,
  filled: number,
  length: number,
  place: { at: number; offset: number },
) => Promise<void>

/** Reads what volumes map from the pool's data. */
export const readFrom =
  (data: DataStore): ReadMapped =>
  async (buffer, filled, length, { at }) => {
    if (data.readNow(buffer, filled, length, bytes(at))) return
    await data.readLater(buffer, filled, length, bytes(at))
  }

/** A volume that nobody changes, by the pool's own files. */
export interface SendSource {
  metadata: Store
  read: ReadMapped
  /** Bytes of a data block. */
  blockSize: number
  name: string
  size: number
  /** Metadata block of the root of its mapping tree. */
  root: number
  /** The name of its content in streams. */
  content: string | null
  /** The volume that the stream goes on from. */
  base: { name: string; size: number; root: number; content: string } | null
  /** Bytes of the volume that the receiver has already. */
  resume: number
}

/** Neighbouring blocks of the volume, at most MAX_DATA bytes: data, or what became a hole. */
interface Piece {
  offset: number
  length: number
  /** The place of the bytes in the data store, from each offset on; null for a hole. */
  parts: { at: number; length: number }[] | null
}

/**
 * Sends a volume: all that it maps, or with a base what differs from that. No data is read to find
 * it.
 * @param write resolves when more can be taken
 * @param options.compress by zstd
 * @param options.onProgress is told of the bytes of the volume that are behind, and of those sent
 * @param options.checkpointPeriod bytes of the stream from one checkpoint to the next
 * @throws BAD_ARGUMENT when `source.resume` is none of its checkpoints; METADATA_CORRUPT, IO_ERROR,
 *   and what `write` throws
 */
export async function sendTo(
  source: SendSource,
  write: (chunk: Uint8Array) => Promise<void>,
  options: {
    compress: boolean
    onProgress: (offset: number, sent: number) => void
    checkpointPeriod?: number
  },
): Promise<void> {
  const codec = options.compress ? await loadZstd() : null
  const out = new RecordWriter(write, codec)
  const { name, size, content, base, resume } = source
  const header: StreamHeader = {
    ...{ version: resume > 0 ? 2 : 1, name, size, content, resume },
    base: base && { name: base.name, content: base.content },
  }
  await out.begin(header)
  const pieces = piecesOf(source)
  const period = options.checkpointPeriod ?? CHECKPOINT_PERIOD
  let checkpoint = period
  // One piece is read while the one before it is written.
  let reading = readNext(pieces, source.read)
  for (;;) {
    const next = await reading
    if (next === null) break
    reading = readNext(pieces, source.read)
    reading.catch(() => {}) // It is awaited next, unless writing fails.
    const { offset, length } = next.piece
    if (next.content === null) await out.discard(offset, length)
    else await out.data(offset, next.content)
    if (out.sent >= checkpoint) {
      await out.checkpoint(offset + length)
      checkpoint = out.sent + period
    }
    options.onProgress(offset + length, out.sent)
  }
  await out.end()
}

async function readNext(
  pieces: Generator<Piece>,
  read: ReadMapped,
): Promise<{ piece: Piece; content: Buffer | null } | null> {
  const { value: piece, done } = pieces.next()
  if (done) return null
  if (piece.parts === null) return { piece, content: null }
  const content = Buffer.allocUnsafe(piece.length)
  let filled = 0
  for (const { at, length } of piece.parts) {
    await read(content, filled, length, { at, offset: piece.offset + filled })
    filled += length
  }
  return { piece, content }
}

/** The ranges to be sent, ascending. A block larger than a record is more than one piece. */
function* piecesOf(source: SendSource): Generator<Piece> {
  const { resume } = source
  for (const piece of allPiecesOf(source, Math.floor(resume / source.blockSize))) {
    if (piece.offset + piece.length <= resume) continue
    if (piece.offset < resume) throw notACheckpoint(resume)
    yield piece
  }
}

const notACheckpoint = (offset: number): ThinfsError =>
  new ThinfsError('BAD_ARGUMENT', `byte ${offset}: a stream of this volume cannot go on there`)

/** @param first block that matters */
function* allPiecesOf(source: SendSource, first: number): Generator<Piece> {
  const { metadata, root, base, blockSize, size } = source
  const view = new MetadataView(metadata)
  const end = Math.ceil(size / blockSize)
  if (first >= end) return
  if (base === null) return yield* piecesIn(source, view, null, { begin: first, end })
  // No receiver got what is past the end of the base, whatever its tree has there.
  const common = base.size < size ? Math.floor(base.size / blockSize) : end
  if (common > first) yield* piecesIn(source, view, base.root, { begin: first, end: common })
  if (common === end) return
  const offset = common * blockSize
  if (first <= common && base.size > offset && !isMapped(view, root, common)) {
    yield { offset, length: Math.min(blockSize, size - offset), parts: null }
  }
  yield* piecesIn(source, view, null, { begin: Math.max(common, first), end })
}

function isMapped(view: MetadataView, root: number, vblock: number): boolean {
  let found = false
  const range = { begin: vblock, end: vblock + 1, shared: true }
  for (const _ of view.compare(null, root, range, () => {
    found = true
  })) {
    // The visitor has seen it.
  }
  return found
}

function* piecesIn(
  { root, blockSize, size }: SendSource,
  view: MetadataView,
  base: number | null,
  range: { begin: number; end: number },
): Generator<Piece> {
  const done: Piece[] = []
  let piece: Piece | null = null
  const add = (offset: number, length: number, at: number): void => {
    const isHole = at < 0
    const fits = piece !== null && piece.offset + piece.length === offset
    if (piece !== null && fits && isHole && piece.parts === null) {
      piece.length += length
    } else if (!isHole && fits && piece!.parts !== null && piece!.length + length <= MAX_DATA) {
      const last = piece!.parts.at(-1)!
      if (last.at + last.length === at) last.length += length
      else piece!.parts.push({ at, length })
      piece!.length += length
    } else {
      if (piece !== null) done.push(piece)
      piece = { offset, length, parts: isHole ? null : [{ at, length }] }
    }
  }
  const visit = (vblock: number, left: number, right: number): void => {
    if (left === right) return
    const offset = vblock * blockSize
    const length = Math.min(blockSize, size - offset)
    if (right < 0) add(offset, length, -1)
    else {
      for (let part = 0; part < length; part += MAX_DATA) {
        add(offset + part, Math.min(MAX_DATA, length - part), right * blockSize + part)
      }
    }
  }
  const steps = view.compare(base, root, { ...range, shared: false }, visit)
  while (!steps.next().done) yield* done.splice(0)
  yield* done
  if (piece !== null) yield piece
}

/** Writes records, and what the last one needs of them. */
class RecordWriter {
  /** Bytes of the stream so far. */
  sent = 0
  readonly #write: (chunk: Uint8Array) => Promise<void>
  readonly #codec: Codec | null
  readonly #hash = createHash('sha256')
  #records = 0

  constructor(write: (chunk: Uint8Array) => Promise<void>, codec: Codec | null) {
    this.#write = write
    this.#codec = codec
  }

  async begin(header: StreamHeader): Promise<void> {
    await this.#put(MAGIC)
    const payload = Buffer.from(JSON.stringify(header))
    await this.#record({ kind: KIND.header, encoding: PLAIN, offset: 0, length: 0 }, payload)
  }

  async data(offset: number, content: Buffer): Promise<void> {
    const frame = this.#codec?.compress(content)
    const isSmaller = frame !== undefined && frame.length < content.length
    const encoding = isSmaller ? ZSTD : PLAIN
    const head = { kind: KIND.data, encoding, offset, length: content.length }
    await this.#record(head, isSmaller ? frame : content)
  }

  async discard(offset: number, length: number): Promise<void> {
    await this.#record({ kind: KIND.discard, encoding: PLAIN, offset, length }, EMPTY)
  }

  /** @param offset bytes of the volume that are behind */
  async checkpoint(offset: number): Promise<void> {
    const head = { kind: KIND.checkpoint, encoding: PLAIN, offset, length: 0 }
    await this.#record(head, this.#hash.copy().digest())
  }

  async end(): Promise<void> {
    const head = { kind: KIND.end, encoding: PLAIN, offset: this.#records, length: 0 }
    await this.#record(head, this.#hash.digest())
  }

  async #record(head: RecordHead, payload: Uint8Array): Promise<void> {
    const bytes = encodeHead(head, payload)
    const isLast = head.kind === KIND.end
    await this.#put(bytes, isLast)
    if (payload.length > 0) await this.#put(payload, isLast)
    this.#records++
  }

  async #put(chunk: Uint8Array, isLast = false): Promise<void> {
    if (!isLast) this.#hash.update(chunk)
    this.sent += chunk.length
    await this.#write(chunk)
  }
}

const EMPTY = new Uint8Array(0)
