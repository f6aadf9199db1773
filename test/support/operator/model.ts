/**
 * What the volumes of a pool have to hold, as those know who wrote it.
 *
 * Content is self-describing: each 4 KiB of a volume holds a tag, `writer.sequence.block`, again
 * and again, so that a block that turns up in the wrong place names where it came from. A value
 * that nobody was told about (a size, a tag) is uncertain: it was asked for, and may be there or
 * not.
 */

/** The unit of writes, bytes. */
export const UNIT = 4096

/** What 4 KiB hold; files.py makes and reads them. */
export type Tag = string
export const ZERO: Tag = '0'

/** A value that changes: since the last flush, with what was asked for and never confirmed. */
export class Uncertain<T> {
  /** The first is certain; all behind the last one that is certain may be or not. */
  #history: { value: T; certain: boolean }[]

  constructor(value: T) {
    this.#history = [{ value, certain: true }]
  }

  /** @param certain whether the change was acknowledged */
  set(value: T, certain: boolean): void {
    this.#history.push({ value, certain })
  }

  /** What may be there when only processes have died: the last that was acknowledged, or later. */
  get allowed(): T[] {
    const last = this.#history.findLastIndex(({ certain }) => certain)
    return this.#history.slice(last).map(({ value }) => value)
  }

  /** What may be there when all is lost that was not flushed. */
  get allowedWithoutJournal(): T[] {
    return this.#history.map(({ value }) => value)
  }

  /** What was acknowledged until now will be there whatever happens. */
  flushed(): void {
    const last = this.#history.findLastIndex(({ certain }) => certain)
    this.#history.splice(0, last)
  }

  copy(): Uncertain<T> {
    const [first, ...rest] = this.allowed as [T, ...T[]]
    const copy = new Uncertain(first)
    for (const value of rest) copy.set(value, false)
    return copy
  }
}

/** Something that is being done to volumes, and what may excuse its failure. */
export class Deed {
  /** Somebody else does something to the same volume meanwhile. */
  raced = false
  /** The pool goes away meanwhile. */
  broken = false
  /** The host's disk is full meanwhile. */
  scarce = false
}

export class ModelVolume {
  /** Another than that of any volume before; the writer in tags. */
  readonly id: number
  /** Whose volume it is: only he changes what is in it. */
  readonly owner: string
  name: string
  /** Null until somebody has looked. */
  devId: number | null
  size: Uncertain<number>
  readonly deeds = new Set<Deed>()
  /** Whether something was asked for with a name or an existence that nobody knows yet. */
  pending = false
  gone = false
  /** Blocks of UNIT that are not known to be zeros ever since. */
  readonly #blocks = new Map<number, Uncertain<Tag>>()
  readonly #watchers = new Set<ModelVolume>()

  constructor(id: number, owner: string, name: string, devId: number | null, size: number) {
    this.id = id
    this.owner = owner
    this.name = name
    this.devId = devId
    this.size = new Uncertain(size)
  }

  /** The size that it has for all that was acknowledged. */
  get currentSize(): number {
    return this.size.allowed[0]!
  }

  get isCertain(): boolean {
    return this.size.allowed.length === 1 && !this.pending && !this.gone
  }

  put(block: number, tag: Tag, certain: boolean): void {
    this.#cell(block).set(tag, certain)
    for (const snapshot of this.#watchers) snapshot.put(block, tag, false)
  }

  /** Zeros from block `begin` up to `end`. */
  clear(begin: number, end: number, certain: boolean): void {
    for (const block of this.#blocks.keys()) {
      if (block >= begin && block < end) this.put(block, ZERO, certain)
    }
  }

  /** As `put`: a snapshot that is being taken has the size from before or this one. */
  setSize(size: number, certain: boolean): void {
    this.size.set(size, certain)
    for (const snapshot of this.#watchers) snapshot.setSize(size, false)
  }

  resize(size: number, certain: boolean): void {
    this.setSize(size, certain)
    this.clear(size / UNIT, Number.POSITIVE_INFINITY, certain)
  }

  /** A write, which makes the volume longer where it has to. */
  write(block: number, tags: readonly Tag[], certain: boolean): void {
    const end = (block + tags.length) * UNIT
    for (const [index, tag] of tags.entries()) this.put(block + index, tag, certain)
    if (end > this.currentSize) this.setSize(end, certain)
  }

  allowed(block: number): Tag[] {
    return this.#blocks.get(block)?.allowed ?? [ZERO]
  }

  allowedWithoutJournal(block: number): Tag[] {
    return this.#blocks.get(block)?.allowedWithoutJournal ?? [ZERO]
  }

  /** The end of what is not zeros for certain, bytes. */
  get highestUsed(): number {
    const used = [...this.#blocks].filter(([, cell]) => cell.allowed.some(tag => tag !== ZERO))
    return Math.max(0, ...used.map(([block]) => (block + 1) * UNIT))
  }

  /** Whether something that is mapped for certain would be cut off. */
  holdsDataFrom(size: number): boolean {
    return [...this.#blocks].some(
      ([block, cell]) => block * UNIT >= size && cell.allowed.every(tag => tag !== ZERO),
    )
  }

  flushed(): void {
    this.size.flushed()
    for (const cell of this.#blocks.values()) cell.flushed()
  }

  /** A snapshot, which is as its origin is now, or becomes before `stopWatching`. */
  copyTo(snapshot: ModelVolume): void {
    snapshot.size = this.size.copy()
    for (const [block, cell] of this.#blocks) snapshot.#blocks.set(block, cell.copy())
  }

  watch(snapshot: ModelVolume): void {
    this.copyTo(snapshot)
    this.#watchers.add(snapshot)
  }

  stopWatching(snapshot: ModelVolume): void {
    this.#watchers.delete(snapshot)
  }

  /**
   * Holds what was read against what is allowed; what was found is certain from now on.
   * @param withoutJournal whether what was never flushed may be lost
   * @returns what is wrong, a line for each run of blocks
   */
  compare(found: { size: number; tags: readonly Tag[] }, withoutJournal: boolean): string[] {
    const wrong: string[] = []
    const sizes = withoutJournal ? this.size.allowedWithoutJournal : this.size.allowed
    if (!sizes.includes(found.size)) {
      wrong.push(`${this.name}: size is ${found.size}, allowed is ${sizes.join(' or ')}`)
    }
    for (const [block, tag] of found.tags.entries()) {
      const allowed = withoutJournal ? this.allowedWithoutJournal(block) : this.allowed(block)
      if (allowed.includes(tag)) {
        if (allowed.length > 1) this.#cell(block).set(tag, true)
      } else {
        wrong.push(`${this.name}: block ${block} has ${tag}, allowed is ${allowed.join(' or ')}`)
      }
    }
    if (sizes.length > 1) this.size.set(found.size, true)
    // What is behind the end is not there any more.
    const end = found.size / UNIT
    for (const [block, cell] of this.#blocks) {
      if (block >= end && cell.allowed.some(tag => tag !== ZERO)) cell.set(ZERO, true)
    }
    return wrong
  }

  #cell(block: number): Uncertain<Tag> {
    const cell = this.#blocks.get(block) ?? new Uncertain(ZERO)
    this.#blocks.set(block, cell)
    return cell
  }
}

export class Model {
  readonly volumes = new Set<ModelVolume>()
  #lastId = 0
  #sequence = 0

  /** A new volume, which is not in the pool yet. */
  draft(owner: string, name: string, devId: number | null, size: number): ModelVolume {
    return new ModelVolume(++this.#lastId, owner, name, devId, size)
  }

  add(volume: ModelVolume): void {
    this.volumes.add(volume)
  }

  remove(volume: ModelVolume): void {
    volume.gone = true
    this.volumes.delete(volume)
  }

  nextSequence(): number {
    return ++this.#sequence
  }

  /** A number that no name has yet. */
  nextName(owner: string): string {
    return `${owner}-${++this.#lastId}`
  }

  find(name: string): ModelVolume | undefined {
    return [...this.volumes].find(volume => volume.name === name)
  }

  hasDevice(devId: number): boolean {
    return [...this.volumes].some(volume => volume.devId === devId)
  }

  flushed(): void {
    for (const volume of this.volumes) volume.flushed()
  }
}
