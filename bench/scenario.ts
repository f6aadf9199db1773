/** What a bench is made of: scenarios, which measure cells, which have goals. */

/** How to measure. */
export interface Settings {
  /** How often each cell is measured, all contenders in every round. */
  rounds: number
  /** For how long each time, where a load has no end of its own. */
  seconds: number
  /** Only to show that it works: what takes minutes to make may be smaller. */
  quick: boolean
  /** Aborted when the bench has to end. */
  signal: AbortSignal
  /** Whether a cell is wanted. */
  wants(cell: string): boolean
}

/** Where a scenario works: folders of its own, empty, gone afterwards. */
export interface Place {
  /** In memory (tmpfs). */
  memory: string
  /** On this machine's disk. */
  disk: string
}

export interface Scenario {
  /** Cells are called `name/…`. */
  name: string
  /** What it asks, in a line. */
  about: string
  /** Bytes of memory that it takes at most. */
  memory: number
  run(place: Place, settings: Settings): Promise<Cell[]>
  /** Prints the cells. Default: a table of all contenders. */
  print?(cells: Cell[]): void
}

/** What was measured of every contender, once a round, one after the other. */
export interface Cell {
  name: string
  unit: string
  /** By contender, in the order of the rounds. */
  samples: Record<string, number[]>
  goals: Goal[]
}

/** What has to be reached: a ratio of two contenders in the same rounds, or a figure. */
export interface Goal {
  of: string
  /** Left out: the goal is the figure itself, not a ratio. */
  to?: string
  least?: number
  most?: number
}

export const atLeast = (least: number, of: string, to: string): Goal => ({ of, to, least })
export const atMost = (most: number, of: string, to?: string): Goal =>
  to === undefined ? { of, most } : { of, to, most }

/**
 * Measures every contender once a round, so that whatever else the machine does meets all of them,
 * and begins each round with another, so that none always comes after the same.
 */
export async function paired<T extends { name: string }>(
  contenders: readonly T[],
  { rounds, signal }: Settings,
  measure: (contender: T, round: number) => Promise<number>,
): Promise<Record<string, number[]>> {
  const samples = Object.fromEntries(contenders.map(({ name }) => [name, [] as number[]]))
  for (let round = 0; round < rounds; round++) {
    const first = round % contenders.length
    for (const contender of [...contenders.slice(first), ...contenders.slice(0, first)]) {
      signal.throwIfAborted()
      samples[contender.name]!.push(await measure(contender, round))
    }
  }
  return samples
}
