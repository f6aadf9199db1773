/**
 * Reading ahead: who reads one part of the disk after another is likely to read the next. Learned
 * by the gaps between reads, and given up where nobody asks for what was read.
 */
import { KIB, MIB } from '../base/index.js'

/** Readers that are followed at a time. */
const READERS = 8
/** Bytes that a reader may leave out, and that reads under way together may be out of order by. */
const GAP = 128 * KIB
const DISORDER = 2 * MIB
/** Reads one after the other that make a reader one who is followed. */
const PROOF = 3
const PROOF_MAX = 64
/** Bytes that are read ahead at first: so many reads, within bounds. */
const FIRST = 4
const FIRST_MIN = 16 * KIB
const FIRST_MAX = 256 * KIB
/** Pages after which it is judged anew whether reading ahead is worth it. */
const JUDGED = 128

export class ReadAhead {
  readonly #max: number
  /** By reader: where the last read ended, and how many in order there were. */
  readonly #ends = new Float64Array(READERS).fill(-1)
  readonly #proofs = new Uint32Array(READERS)
  /** The end of the bytes that were read ahead, and how far ahead it is to be. */
  readonly #aheads = new Float64Array(READERS)
  readonly #windows = new Float64Array(READERS)
  /** When it read last. */
  readonly #times = new Float64Array(READERS)
  #now = 0
  #proof = PROOF
  #usedBefore = 0
  #wastedBefore = 0
  /** The range that `next` has found. Bytes of the disk. */
  begin = 0
  end = 0

  /** @param max bytes ahead of a reader at most */
  constructor(max: number) {
    this.#max = max
  }

  /**
   * Somebody reads [from, to), which nobody had asked for so far.
   * @returns whether [begin, end) is to be read
   */
  next(from: number, to: number): boolean {
    const reader = this.#readerAt(from)
    this.#times[reader] = ++this.#now
    const last = this.#ends[reader]!
    const isKnown = last >= 0 && from >= last - DISORDER && from <= last + GAP
    if (!isKnown) {
      this.#ends[reader] = to
      this.#proofs[reader] = 0
      this.#aheads[reader] = 0
      this.#windows[reader] = 0
      return false
    }
    // Those that are under way together may come in another order; most of them do not.
    const proofs = this.#proofs[reader]! + (from >= last ? 1 : -1)
    this.#proofs[reader] = Math.min(PROOF_MAX, Math.max(0, proofs))
    if (to <= last) return false
    this.#ends[reader] = to
    if (this.#proofs[reader]! < this.#proof) return false
    return this.#goOn(reader, to, Math.min(FIRST_MAX, Math.max(FIRST_MIN, FIRST * (to - from))))
  }

  /** Learns from what became of the pages that were read ahead. */
  judge(nrUsed: number, nrWasted: number): void {
    const [used, wasted] = [nrUsed - this.#usedBefore, nrWasted - this.#wastedBefore]
    if (used + wasted < JUDGED) return
    this.#usedBefore = nrUsed
    this.#wastedBefore = nrWasted
    const proof = wasted > used ? this.#proof * 4 : this.#proof / 2
    this.#proof = Math.min(PROOF_MAX, Math.max(PROOF, proof))
    if (wasted > used) this.#proofs.fill(0)
  }

  /** @param first bytes that are read ahead at first */
  #goOn(reader: number, to: number, first: number): boolean {
    const window = this.#windows[reader]!
    const ahead = Math.max(this.#aheads[reader]!, to)
    // Half of it is still to come: the disk is busy with that.
    if (window > 0 && ahead - to > window / 2) return false
    const wanted = Math.min(this.#max, window === 0 ? first : window * 2)
    this.#windows[reader] = wanted
    this.begin = ahead
    this.end = to + wanted
    this.#aheads[reader] = Math.max(ahead, this.end)
    return this.end > this.begin
  }

  /** The reader that may go on there; else the one that has read longest ago. */
  #readerAt(from: number): number {
    let oldest = 0
    for (let i = 0; i < READERS; i++) {
      const last = this.#ends[i]!
      if (last >= 0 && from >= last - DISORDER && from <= last + GAP) return i
      if (this.#times[i]! < this.#times[oldest]!) oldest = i
    }
    return oldest
  }
}
