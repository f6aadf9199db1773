/**
 * What a pool's devices may hold, when some of what was asked of them has failed.
 *
 * Every write fills sectors with a number of its own, so a sector says where it came from: bytes of
 * another device, of a free block or of a write that was undone are found out. Of each sector the
 * model keeps what it may hold now, and what it may fall back to: all that it could have held since
 * the last flush that went well.
 */
import { assert } from '../../src/base/index.js'

const SECTOR = 512

interface Version {
  /** The step that made it so. */
  step: number
  /** One number, or several when it is not known which. */
  tags: number[]
}

export class TaggedDevices {
  readonly #nrSectors: number
  readonly #devices = new Map<number, Version[][]>()
  /** Device sets since the last flush; the last is that of now. */
  #sets: { step: number; ids: number[] }[] = [{ step: 0, ids: [] }]
  /** Sectors compared. */
  verified = 0

  constructor(nrSectors: number) {
    this.#nrSectors = nrSectors
  }

  /** Devices that are there now. */
  get ids(): readonly number[] {
    return this.#sets.at(-1)!.ids
  }

  /** @param origin of a snapshot; null for an empty device */
  add(step: number, id: number, origin: number | null): void {
    const sectors = Array.from({ length: this.#nrSectors }, (_, i) => {
      const tags = origin === null ? [0] : this.#devices.get(origin)![i]!.at(-1)!.tags
      return [{ step, tags }]
    })
    this.#devices.set(id, sectors)
    this.#sets.push({ step, ids: [...this.ids, id] })
  }

  remove(step: number, id: number): void {
    this.#sets.push({ step, ids: this.ids.filter(other => other !== id) })
  }

  /** @param done false when it failed: each sector is the old one or the new one */
  write(step: number, id: number, first: number, tags: readonly number[], done: boolean): void {
    const sectors = this.#devices.get(id)!
    tags.forEach((tag, i) => {
      const versions = sectors[first + i]!
      const before = versions.at(-1)!.tags
      versions.push({ step, tags: done ? [tag] : union(before, [tag]) })
    })
  }

  /**
   * Copies `count` sectors.
   * @param done false when it failed: each sector is the old one or the new one
   */
  share(
    step: number,
    from: { id: number; first: number },
    to: { id: number; first: number },
    count: number,
    done: boolean,
  ): void {
    const source = this.#devices.get(from.id)!.slice(from.first, from.first + count)
    const tags = source.map(versions => versions.at(-1)!.tags)
    tags.forEach((tags, i) => {
      const versions = this.#devices.get(to.id)![to.first + i]!
      versions.push({ step, tags: done ? tags : union(versions.at(-1)!.tags, tags) })
    })
  }

  /** What was so when `step` began is durable. */
  flushed(step: number): void {
    for (const sectors of this.#devices.values()) {
      for (const versions of sectors) keepFrom(versions, step)
    }
    keepFrom(this.#sets, step)
    const alive = new Set(this.#sets.flatMap(({ ids }) => ids))
    for (const id of this.#devices.keys()) if (!alive.has(id)) this.#devices.delete(id)
  }

  /**
   * It has fallen back to something since the last flush: from here on that may be seen.
   * @param found devices that are there
   * @throws when there was never that set of devices
   */
  fellBack(step: number, found: readonly number[]): void {
    this.mustHaveHad(found)
    this.#sets = [{ step, ids: [...found] }]
    for (const sectors of this.#devices.values()) {
      for (const versions of sectors) {
        const tags = union(...versions.map(version => version.tags))
        versions.splice(0, versions.length, { step, tags })
      }
    }
  }

  mustHaveHad(found: readonly number[]): void {
    const wanted = found.join()
    const sets = this.#sets.map(({ ids }) => ids.join())
    if (!sets.includes(wanted)) throw new Error(`devices ${wanted}, not ${sets.join(' | ')}`)
  }

  /**
   * @param since whether all since the last flush is right, too
   * @throws naming the first sector that holds what it never may
   */
  verify(id: number, content: Buffer, since: boolean): void {
    const sectors = this.#devices.get(id)!
    for (let i = 0; i < this.#nrSectors; i++) {
      const found = tagOf(content, i)
      const versions = sectors[i]!
      const right = (since ? versions : versions.slice(-1)).some(({ tags }) => tags.includes(found))
      if (right) continue
      const wanted = versions.map(({ step, tags }) => `${tags.join('/')} (${step})`)
      throw new Error(`device ${id} sector ${i}: ${found}, not ${wanted.join(', ')}`)
    }
    this.verified += this.#nrSectors
  }

  copy(): TaggedDevices {
    const copy = new TaggedDevices(this.#nrSectors)
    for (const [id, sectors] of this.#devices) {
      copy.#devices.set(
        id,
        sectors.map(versions => [...versions]),
      )
    }
    copy.#sets = [...this.#sets]
    return copy
  }
}

/** Sectors filled with a number each. */
export function tagged(tags: readonly number[]): Buffer {
  const content = Buffer.alloc(tags.length * SECTOR)
  tags.forEach((tag, i) => {
    assert(tag < 2 ** 32, 'a tag has 32 bits')
    for (let at = 0; at < SECTOR; at += 4) content.writeUInt32LE(tag, i * SECTOR + at)
  })
  return content
}

/** The number that a sector is filled with, -1 when it is not filled with one. */
function tagOf(content: Buffer, sector: number): number {
  const begin = sector * SECTOR
  const end = begin + SECTOR
  // The same number all over: what is shifted by one is the same.
  const uniform = content.compare(content, begin + 4, end, begin, end - 4) === 0
  return uniform ? content.readUInt32LE(begin) : -1
}

/** Drops versions that a flush begun at `step` has made impossible. */
function keepFrom(versions: { step: number }[], step: number): void {
  const last = versions.findLastIndex(version => version.step < step)
  if (last > 0) versions.splice(0, last)
}

const union = (...tags: number[][]): number[] => [...new Set(tags.flat())]
