import { Random as Sequence } from '../../src/base/index.js'

/** A pseudo-random sequence, so that a failing case repeats. */
export class Random extends Sequence {
  /** An integer of [min, max]. */
  between(min: number, max: number): number {
    return min + this.below(max - min + 1)
  }

  chance(probability: number): boolean {
    return this.next() < probability
  }

  of<T>(choices: readonly T[]): T {
    return choices[this.below(choices.length)]!
  }
}
