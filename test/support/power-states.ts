/**
 * What the disk of a PowerDisk may hold after a power cut.
 *
 * What a flush that has ended covers is there. Of what was written later each sector of 512 bytes
 * may be there or not, whatever came before or after it; a file that was made larger, or cut off,
 * may have the length of before. A small file that was replaced is the old one or the new one; the
 * new one is complete only if it was flushed first, which is done for volumes.json and not for the
 * journal. The label of the data is any that it was given since one was flushed.
 */
import type { Label } from '../../src/storage/index.js'
import {
  type BlockFile,
  type DiskState,
  type PowerDisk,
  type PowerEvent,
  SECTOR,
  type SparseImage,
} from './power-disk.js'
import type { Random } from './random.js'

type BlockEvent = PowerEvent & { file: BlockFile }
type Numbered = [nr: number, event: BlockEvent]

/** Which of the events that are not durable, or of their sectors, have reached the disk. */
interface Luck {
  name: string
  keeps(event: number, sector: number): boolean
}

/** The ways to be unlucky, of which `LuckOf` makes one for a cut after `events` events. */
const LUCK: readonly ((random: Random, events: number) => Luck)[] = [
  () => ({ name: 'nothing more', keeps: () => false }),
  () => ({ name: 'everything', keeps: () => true }),
  (random, events) => {
    const end = random.below(events + 1)
    return { name: `the first ${end} events`, keeps: event => event < end }
  },
  (random, events) => {
    const begin = random.below(events + 1)
    return { name: `the events from ${begin}`, keeps: event => event >= begin }
  },
  random => {
    const share = random.of([0.1, 0.5, 0.9])
    const kept = new Map<number, boolean>()
    const keeps = (event: number): boolean => {
      if (!kept.has(event)) kept.set(event, random.chance(share))
      return kept.get(event)!
    }
    return { name: `some events (${share})`, keeps }
  },
  random => {
    const share = random.of([0.05, 0.5, 0.95])
    return { name: `some sectors (${share})`, keeps: () => random.chance(share) }
  },
]

/** A journal's file, of which the first `flushed` bytes are durable. */
interface JournalVersion {
  content: Buffer
  flushed: number
}

/** Goes through the record of a disk, forwards only. */
export class PowerCuts {
  readonly #disk: PowerDisk
  readonly #durable: Record<BlockFile, SparseImage>
  #at = 0
  /** Events of data and metadata that no flush has covered, with their numbers. */
  #pending: Numbered[] = []
  /** What the journal may be: the durable one, then those that replaced it since. */
  #journals: JournalVersion[]
  #tables: (string | null)[]
  #labels: (Label | null)[]

  constructor(disk: PowerDisk) {
    const { data, metadata, journal, table, label } = disk.start
    this.#disk = disk
    this.#durable = { data: data.copy(), metadata: metadata.copy() }
    this.#journals = [{ content: journal, flushed: journal.length }]
    this.#tables = [table]
    this.#labels = [label]
  }

  /** A state that a power cut after the first `events` events may leave, and what it has kept. */
  state(events: number, random: Random): DiskState & { luck: string } {
    for (; this.#at < events; this.#at++) this.#pass(this.#disk.events[this.#at]!, this.#at)
    // Each file has its own luck every other time: they may be on different disks.
    const one = random.of(LUCK)(random, events)
    const other = random.chance(0.5) ? one : random.of(LUCK)(random, events)
    const small = random.of(['old', 'new', 'any'])
    return {
      data: this.#image('data', one),
      metadata: this.#image('metadata', other),
      journal: this.#journal(small, random),
      table: pick(this.#tables, small, random),
      label: pick(this.#labels, random.of(['old', 'new', 'any']), random),
      boot: this.#disk.now.boot + 1,
      luck: `data ${one.name}, metadata ${other.name}, journal and volumes.json ${small}`,
    }
  }

  #pass(event: PowerEvent, number: number): void {
    if (event.kind === 'flush') this.#flushed(event.file, event.covers)
    else if (event.file === 'label') this.#labels.push(event.label)
    else if (event.file === 'table') this.#tables.push(event.content)
    else if (event.file !== 'journal') this.#pending.push([number, event as BlockEvent])
    else if (event.kind === 'replace') this.#journals.push({ content: event.content, flushed: 0 })
    else {
      const last = this.#journals.at(-1)!
      last.content = Buffer.concat([last.content, event.content])
    }
  }

  #flushed(file: (PowerEvent & { kind: 'flush' })['file'], covers: number): void {
    if (file === 'table') this.#tables = this.#tables.slice(-1)
    else if (file === 'label') this.#labels = this.#labels.slice(-1)
    else if (file === 'journal') {
      const last = this.#journals.at(-1)!
      this.#journals = [{ content: last.content, flushed: last.content.length }]
    } else {
      const left: Numbered[] = []
      for (const pending of this.#pending) {
        const [number, event] = pending
        if (event.file !== file || number >= covers) left.push(pending)
        else apply(this.#durable[file], event)
      }
      this.#pending = left
    }
  }

  #image(file: BlockFile, luck: Luck): SparseImage {
    const image = this.#durable[file].copy()
    const whole = this.#durable[file].copy()
    for (const [number, event] of this.#pending) {
      if (event.file !== file) continue
      apply(whole, event)
      apply(image, event, { keeps: sector => luck.keeps(number, sector), whole })
    }
    return image
  }

  #journal(which: string, random: Random): Buffer {
    const { content, flushed } = pick(this.#journals, which, random)
    const rest = content.length - flushed
    const kept = flushed + random.below(rest + 1)
    switch (
      rest === 0 ? 'whole' : random.of(['whole', 'flushed', 'cut', 'zeros', 'torn', 'noise'])
    ) {
      case 'flushed':
        return content.subarray(0, flushed)
      case 'cut':
        return content.subarray(0, kept)
      case 'zeros':
        return Buffer.from(content).fill(0, kept)
      case 'torn': {
        const torn = Buffer.from(content)
        const begin = Math.max(flushed, Math.floor(kept / SECTOR) * SECTOR)
        return torn.fill(0, begin, Math.min(begin + SECTOR, torn.length))
      }
      case 'noise': {
        const noise = Buffer.from(content)
        for (let i = kept; i < noise.length; i++) noise[i] = random.below(256)
        return noise
      }
      default:
        return content
    }
  }
}

function pick<T>(versions: readonly T[], which: string, random: Random): T {
  if (which === 'old') return versions[0]!
  return which === 'new' ? versions.at(-1)! : random.of(versions)
}

/** Which sectors of an event are kept, and the image as it was after the event. */
interface Kept {
  keeps(sector: number): boolean
  whole: SparseImage
}

/**
 * Does to an image what an event did, or those sectors of it that are kept. A sector that the event
 * changed in part reaches the disk with all that was written to it before.
 */
function apply(image: SparseImage, event: BlockEvent, part?: Kept): void {
  const keeps = (sector: number): boolean => part?.keeps(sector) ?? true
  if (event.kind === 'grow') {
    if (keeps(0)) image.grow(event.size)
  } else if (event.kind === 'cut') {
    if (keeps(0)) image.cut(event.size)
  } else if (event.kind === 'write' || event.kind === 'punch') {
    const length = event.kind === 'write' ? event.content.length : event.length
    const end = Math.min(event.offset + length, image.bytes.length)
    for (let at = event.offset; at < end; ) {
      // Sectors in a row that share their fate are one step: only whole pages become holes.
      const kept = keeps(Math.floor(at / SECTOR))
      let to = Math.min((Math.floor(at / SECTOR) + 1) * SECTOR, end)
      while (to < end && keeps(to / SECTOR) === kept) to = Math.min(to + SECTOR, end)
      if (kept && event.kind === 'write') {
        image.write(event.content.subarray(at - event.offset, to - event.offset), at)
      } else if (kept) image.punch(at, to - at)
      if (kept && part) {
        for (const edge of [at, to].filter(edge => edge % SECTOR !== 0)) {
          const begin = Math.floor(edge / SECTOR) * SECTOR
          image.write(part.whole.bytes.subarray(begin, begin + SECTOR), begin)
        }
      }
      at = to
    }
  }
}
