/** What the volumes of a pool hold, over time, and which of it a power cut may bring back. */
import { SECTOR } from './power-disk.js'

/** A volume at one moment. Content is as long as volumes get; zeros follow the end. */
export interface ModelVolume {
  /** Tells volumes apart that had the same name or device id one after the other. */
  id: number
  devId: number
  size: number
  content: Buffer
}

/** All volumes at one moment, by name. */
export type ModelVolumes = ReadonlyMap<string, ModelVolume>

/** What was found in a pool: content is as long as the size. */
export type Found = ReadonlyMap<string, { devId: number; size: number; content: Buffer }>

interface Flush {
  events: number
  version: number
}

/** What may be found: names and content of these states, for each volume one of the sizes. */
export interface Allowed {
  states: readonly ModelVolumes[]
  sizes: (id: number) => Set<number>
}

export class VolumesModel {
  /** Every state there was, each with the number of events before the operation that made it. */
  readonly #versions: { begun: number; volumes: ModelVolumes }[] = [
    { begun: 0, volumes: new Map() },
  ]
  /** Which version was durable when so many events had happened, its names and content. */
  readonly #flushed: Flush[] = [{ events: 0, version: 0 }]
  /** The same for sizes: of all volumes, or of one. */
  readonly #sizesFlushed: (Flush & { id: number | null })[] = [{ events: 0, version: 0, id: null }]

  get volumes(): ModelVolumes {
    return this.#versions.at(-1)!.volumes
  }

  /** The number of the state as it is now. */
  get version(): number {
    return this.#versions.length - 1
  }

  /** An operation begins that makes `change`. */
  begin(events: number, change: (volumes: Map<string, ModelVolume>) => void): void {
    const volumes = new Map(this.volumes)
    change(volumes)
    this.#versions.push({ begun: events, volumes })
  }

  /** A flush of all volumes has ended, which began when `version` was the state. */
  flushed(events: number, version: number): void {
    this.changed(events, version, null)
  }

  /** A change of names, or of the size of volume `id`, has become durable. */
  changed(events: number, version: number, id: number | null): void {
    this.#flushed.push({ events, version: Math.max(version, this.#flushed.at(-1)!.version) })
    this.#sizesFlushed.push({ events, version, id })
  }

  /** What is allowed to be there if nothing is lost of the states since `version`. */
  since(version: number): Allowed {
    const states = this.#versions.slice(version).map(({ volumes }) => volumes)
    return { states, sizes: id => sizesOf(states, id) }
  }

  /** What is allowed to be there after a power cut after `events` events. */
  window(events: number): Allowed {
    const { version } = this.#flushed.findLast(flush => flush.events <= events)!
    const end = this.#versions.findLastIndex(({ begun }) => begun <= events) + 1
    const states = (from: number) => this.#versions.slice(from, end).map(({ volumes }) => volumes)
    const sizesSince = (id: number): number => {
      const isOf = (flush: { events: number; id: number | null }): boolean =>
        flush.events <= events && (flush.id === null || flush.id === id)
      return Math.max(...this.#sizesFlushed.filter(isOf).map(flush => flush.version))
    }
    return { states: states(version), sizes: id => sizesOf(states(sizesSince(id)), id) }
  }
}

/**
 * Holds what was found against what is allowed: the names are those of one state, each size and
 * each sector is one that the same volume had.
 * @returns the volumes of the state whose names were found
 */
export function verifyFound(found: Found, { states, sizes }: Allowed): ModelVolumes {
  const names = namesOf(found)
  const named = states.findLast(volumes => namesOf(volumes) === names)
  if (!named) {
    const allowed = new Set(states.map(namesOf))
    throw new Error(`volumes are ${names}, allowed is ${[...allowed].join(' or ')}`)
  }
  for (const [name, { size, content }] of found) {
    const { id } = named.get(name)!
    const versions = states.flatMap(volumes => [...volumes.values()].filter(v => v.id === id))
    // A device without an entry in volumes.json is as large as what it maps.
    const isUnnamed = name.startsWith('thin-')
    const allowed = sizes(id)
    if (!isUnnamed && !allowed.has(size)) {
      throw new Error(`${name}: size is ${size}, allowed is ${[...allowed].join(' or ')}`)
    }
    verifyContent(name, content, [...new Set(versions.map(version => version.content))])
  }
  return named
}

const sizesOf = (states: readonly ModelVolumes[], id: number): Set<number> =>
  new Set(
    states.flatMap(volumes => [...volumes.values()].filter(v => v.id === id)).map(v => v.size),
  )

function verifyContent(name: string, found: Buffer, versions: readonly Buffer[]): void {
  const isAt = (version: Buffer, begin: number, end: number): boolean =>
    found.compare(version, begin, end, begin, end) === 0
  if (isAt(versions.at(-1)!, 0, found.length)) return
  for (let at = 0; at < found.length; at += SECTOR) {
    const end = Math.min(at + SECTOR, found.length)
    if (versions.some(version => isAt(version, at, end))) continue
    const show = (content: Buffer): string => content.toString('latin1', at, at + 24)
    const allowed = new Set(versions.map(version => JSON.stringify(show(version))))
    throw new Error(
      `${name}: at ${at}: found ${JSON.stringify(show(found))}, allowed is ${[...allowed].join(' or ')}`,
    )
  }
}

const namesOf = (volumes: ReadonlyMap<string, { devId: number }>): string =>
  `{${[...volumes]
    .map(([name, { devId }]) => `${name}: ${devId}`)
    .sort()
    .join(', ')}}`
