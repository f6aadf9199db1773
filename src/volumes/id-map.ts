import { readFileSync } from 'node:fs'

/** The id that the kernel shows for a user or group without a number in a namespace. */
const UNKNOWN = 65534

/**
 * The numbers that users, or groups, of this process's user namespace have outside of it.
 *
 * volumes.json has the numbers from outside. So a pool belongs to the same people whether it is
 * mounted inside of a namespace (`unshare -Urm`, a container) or outside.
 * Source: user_namespaces(7), "User and group ID mappings".
 */
export class IdMap {
  /** Rows of three: the first number inside, the first one outside, how many. */
  readonly #rows: number[]

  /** @param text of /proc/PID/uid_map */
  constructor(text: string) {
    this.#rows = text.split(/\s+/).filter(Boolean).map(Number)
  }

  /** This process's own; all are the same where the kernel has no user namespaces. */
  static own(kind: 'uid' | 'gid'): IdMap {
    try {
      return new IdMap(readFileSync(`/proc/self/${kind}_map`, 'latin1'))
    } catch {
      return new IdMap('0 0 4294967295')
    }
  }

  outside(id: number): number {
    return this.#map(id, 0, 1)
  }

  inside(id: number): number {
    return this.#map(id, 1, 0)
  }

  /**
   * @param from column of the row that `id` is looked for in.
   * @param to column of what it becomes
   */
  #map(id: number, from: 0 | 1, to: 0 | 1): number {
    const rows = this.#rows
    for (let row = 0; row < rows.length; row += 3) {
      const nr = id - rows[row + from]!
      if (nr >= 0 && nr < rows[row + 2]!) return rows[row + to]! + nr
    }
    return UNKNOWN
  }
}
