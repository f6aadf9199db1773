/** A range that is being zeroed. */
interface Zone {
  begin: number
  end: number
  ended: Promise<void>
}

/**
 * The ranges that are being zeroed. As long as the disk has not answered, what it has there is not
 * known: such a range is not read, and not taken for a hole.
 */
export class Zones {
  readonly #zones = new Set<Zone>()

  /** Calls `clear`, and has the range as a zone until that has ended. */
  run(begin: number, end: number, clear: () => Promise<void>): Promise<void> {
    const zone: Zone = { begin, end, ended: Promise.resolve() }
    this.#zones.add(zone)
    const clearing = clear().finally(() => this.#zones.delete(zone))
    zone.ended = clearing.catch(() => {})
    return clearing
  }

  /** Whether a part of a range is being zeroed. */
  touches(from: number, to: number): boolean {
    if (this.#zones.size === 0) return false
    for (const { begin, end } of this.#zones) if (begin < to && from < end) return true
    return false
  }

  /** Resolves when no part of a range is being zeroed. */
  async end(from: number, to: number): Promise<void> {
    while (this.touches(from, to)) {
      for (const { begin, end, ended } of this.#zones) if (begin < to && from < end) await ended
    }
  }
}
