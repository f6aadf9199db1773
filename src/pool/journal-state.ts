/** Judging metadata by the journal beside it. */
import {
  ageOf,
  CHANGES,
  CLEAN,
  frames,
  isNewer,
  sameBoot,
  sameHash,
  sameSuperblock,
} from './journal-frames.js'

/** The verdict of a journal about a superblock. */
export interface JournalState {
  /** Orderly shutdown of exactly this superblock: every free data block is a hole. */
  clean: boolean
  /** It was thinfs, in this boot or before, that wrote this superblock or had opened it. */
  known: boolean
  /**
   * The last process to write the journal ended with an orderly shutdown, of whatever superblock.
   */
  saysClean: boolean
  /**
   * Another program changed the metadata since thinfs had it, and nothing says that it is newer
   * now: it may be an older copy that was put back. After a power cut a journal that does not know
   * the superblock says nothing, unless it is CLEAN.
   */
  doubtful: boolean
  /**
   * The superblock is from before a durable change of devices or names: an older copy was put back.
   * Later changes cannot be replayed on it.
   */
  older: boolean
  /**
   * The last generation that the file speaks of, which is that of the superblock or the one after
   * it. For a file whose end a power cut may have taken: the last that it gives this superblock,
   * null for none.
   */
  generation: number | null
  /** The generation that the label of the data has, at least; 0 where that is not known. */
  labelled: number
  /** Frames of changes to replay on top of it. */
  changes: readonly Buffer[]
}

/**
 * Judges a superblock by a journal.
 * @param file the journal's content
 * @param wanted identity of the superblock that was found
 * @throws POOL_MISMATCH when a later thinfs wrote the journal
 */
export function judge(file: Buffer, wanted: Buffer): JournalState {
  let clean = false
  let known = false
  let found = false
  let saysClean = false
  let last: Buffer | null = null
  let naming: Buffer | null = null
  let newer: Buffer[] = []
  let lacksDurable = false
  let changes: Buffer[] = []
  let announced = false
  /**
   * CHANGES frames behind the last frame of another kind, and those of them that are yet to be
   * repeated.
   */
  let nrBehind = 0
  let nrRepeated = 0
  for (const { kind, payload } of frames(file)) {
    saysClean = kind === CLEAN
    if (kind === CHANGES) {
      clean = false
      announced = payload.length === 0
      if (announced) continue
      if (nrRepeated > 0) {
        nrRepeated--
        continue
      }
      nrBehind++
      if (found) changes.push(payload)
      continue
    }
    const isRepetition = announced && last !== null && payload.equals(last)
    announced = false
    nrRepeated = isRepetition ? nrBehind : 0
    if (!isRepetition) nrBehind = 0
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
      if (sameSuperblock(payload, wanted)) {
        found = true
        if (!isRepetition) changes = []
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
