/**
 * The content of a volume at a moment of its recording: after some entries, or after a power cut
 * then.
 *
 * A power cut leaves what was durable, and of the rest any part: each write that was acknowledged
 * since the last flush that ended is there, is missing, or is torn between sectors, and they got to
 * the disk in any order. A seed chooses; the same seed chooses the same at the same entry.
 */
import { Random, SECTOR_SIZE, ThinfsError } from '../base/index.js'
import { RECORDED } from './record-format.js'
import type { RecordEntry, RecordReader } from './record-reader.js'

/** The file that a state is put into, of the size of the volume. */
export interface ReplayTarget {
  write(buffer: Uint8Array, length: number, offset: number): void
  /** Makes a range read as zeros. @param discards gives its space back */
  clear(offset: number, length: number, discards: boolean): void
}

/** A longer entry is torn between groups of sectors: to choose for each would take long. */
const MAX_TORN_SECTORS = 8192

/** A part of an entry: the same fields, for fewer bytes. */
type Piece = RecordEntry

/** A moment of a recording. */
export interface Moment {
  /** How many entries had been acknowledged. */
  entry: number
  /** How many of them were durable. */
  durable: number
  /** The last mark among them. */
  mark: string | null
}

const changes = ({ kind }: RecordEntry): boolean =>
  kind === RECORDED.write || kind === RECORDED.discard || kind === RECORDED.zero

/**
 * The moment after an entry.
 * @param text its number, or the name of a mark, of which the first counts
 * @throws BAD_ARGUMENT when there is no such entry
 */
export function momentAt(reader: RecordReader, text: string): Moment {
  const number = /^\d+$/.test(text) ? Number(text) : Number.NaN
  for (const moment of moments(reader)) {
    const isMark = moment.entry > 0 && reader.entry(moment.entry).kind === RECORDED.mark
    if (Number.isNaN(number) ? isMark && moment.mark === text : moment.entry === number) {
      return moment
    }
  }
  const detail = `${text}: neither a mark nor one of the ${reader.count} entries`
  throw new ThinfsError('BAD_ARGUMENT', detail)
}

/**
 * The moments at each flush, those that were ignored too, and at the end.
 * @param before those before a flush has ended, when most is not durable; else those after it
 */
export function flushMoments(reader: RecordReader, before: boolean): Moment[] {
  const found: Moment[] = []
  let last: Moment | null = null
  for (const moment of moments(reader)) {
    if (moment.entry > 0 && isFlush(reader.entry(moment.entry))) {
      found.push(before ? last! : moment)
    }
    last = moment
  }
  if (found.at(-1)?.entry !== last!.entry) found.push(last!)
  return found
}

/** All there are, beginning with that before the first entry. */
function* moments(reader: RecordReader): Generator<Moment> {
  let durable = 0
  let mark: string | null = null
  yield { entry: 0, durable, mark }
  for (let entry = 1; entry <= reader.count; entry++) {
    const found = reader.entry(entry)
    if (found.kind === RECORDED.flush) durable = Math.max(durable, found.at)
    if (found.kind === RECORDED.mark) mark = reader.mark(found)
    yield { entry, durable, mark }
  }
}

const isFlush = ({ kind }: RecordEntry): boolean =>
  kind === RECORDED.flush || kind === RECORDED.ignoredFlush

/** Does to `target` what entries `from` + 1 to `to` did to the volume. */
export function apply(reader: RecordReader, from: number, to: number, target: ReplayTarget): void {
  for (let i = from + 1; i <= to; i++) put(reader, reader.entry(i), target)
}

/**
 * Does to `target` what a power cut may have left of entries `from` + 1 to `to`, none of which was
 * flushed.
 */
export function applyUnflushed(
  reader: RecordReader,
  range: { from: number; to: number; seed: number },
  target: ReplayTarget,
): void {
  const { from, to, seed } = range
  const random = new Random(Math.imul(seed, 0x9e3779b1) ^ to)
  const pieces: Piece[] = []
  for (let i = from + 1; i <= to; i++) {
    const entry = reader.entry(i)
    if (!changes(entry)) continue
    const fate = random.next()
    if (fate < 0.4) continue
    if (fate < 0.8) pieces.push(entry)
    else pieces.push(...torn(entry, random))
  }
  random.shuffle(pieces)
  for (const piece of pieces) put(reader, piece, target)
}

/** The sectors of an entry that got to the disk, neighbours in one. */
function torn(entry: RecordEntry, random: Random): Piece[] {
  const end = entry.offset + entry.length
  const nrSectors = Math.ceil(end / SECTOR_SIZE) - Math.floor(entry.offset / SECTOR_SIZE)
  const pieces: Piece[] = []
  const step = Math.ceil(nrSectors / MAX_TORN_SECTORS) * SECTOR_SIZE
  for (let offset = entry.offset; offset < end; ) {
    const next = Math.min((Math.floor(offset / step) + 1) * step, end)
    if (random.next() < 0.5) {
      const last = pieces.at(-1)
      if (last !== undefined && last.offset + last.length === offset) last.length += next - offset
      else pieces.push(part(entry, offset, next))
    }
    offset = next
  }
  return pieces
}

const part = (entry: RecordEntry, offset: number, end: number): Piece => ({
  kind: entry.kind,
  offset,
  length: end - offset,
  at: entry.kind === RECORDED.write ? entry.at + offset - entry.offset : 0,
})

let scratch = Buffer.alloc(0)

function put(reader: RecordReader, piece: Piece, target: ReplayTarget): void {
  const { kind, offset, length, at } = piece
  if (kind === RECORDED.write) {
    if (scratch.length < length) scratch = Buffer.alloc(length)
    reader.data(scratch, length, at)
    target.write(scratch, length, offset)
  } else if (changes(piece)) {
    target.clear(offset, length, kind === RECORDED.discard)
  }
}
