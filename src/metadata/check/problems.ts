/** The checker's findings, in the order in which it found them. */
export interface MetadataProblem {
  severity: 'error' | 'warning'
  /** One sentence: which block, what was found, what was wanted. */
  message: string
}

/** Problems of one severity that are listed; further ones are only counted. */
const MAX_LISTED = 1000

/** Collects problems; damage without end makes no list without end. */
export class Problems {
  readonly list: MetadataProblem[] = []
  /**
   * True once some block could not be read: blocks that nobody was seen to point to may be in use
   * all the same, so nothing can be called a leak.
   */
  incomplete = false
  #found = { error: 0, warning: 0 }

  /** Data is lost, or the next write would lose some. */
  error(message: string): void {
    this.add('error', message)
  }

  /** Nothing is lost: a leak, a statistic that is off, a node with too few entries. */
  warn(message: string): void {
    this.add('warning', message)
  }

  /** An error that hides other blocks from the checker. */
  broken(message: string): void {
    this.incomplete = true
    this.add('error', message)
  }

  add(severity: MetadataProblem['severity'], message: string): void {
    if (this.#found[severity]++ < MAX_LISTED) this.list.push({ severity, message })
  }

  /** Adds how many were not listed. Call it once, last. */
  finish(): void {
    for (const severity of ['error', 'warning'] as const) {
      const more = this.#found[severity] - MAX_LISTED
      if (more > 0) this.list.push({ severity, message: `${more} more are not listed` })
    }
  }
}
