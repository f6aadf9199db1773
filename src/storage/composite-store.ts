import { allEnded, type Bytes, ThinfsError } from '../base/index.js'
import { mustHaveRange, type Store } from './store.js'

/** Does a part of a call: the bytes [place, place + size) of one of the stores below. */
export type UsePart = (store: Store, place: Bytes, size: Bytes) => void

/**
 * A store whose bytes lie in other stores: the calls that are the same wherever they lie. The
 * stores below belong to the caller, who closes them.
 */
export abstract class CompositeStore {
  abstract readonly path: string
  abstract readonly size: Bytes

  /**
   * Calls `use` for each part of a range.
   * @param offset it and `length` are within the store
   */
  protected abstract forEachPart(offset: number, length: number, use: UsePart): void

  punch(offset: Bytes, length: Bytes): void {
    mustHaveRange(this, 'punch', offset, length)
    this.forEachPart(offset, length, (store, place, size) => store.punch(place, size))
  }

  async punchLater(offset: Bytes, length: Bytes): Promise<void> {
    mustHaveRange(this, 'punch', offset, length)
    const punches: Promise<void>[] = []
    this.forEachPart(offset, length, (store, place, size) => {
      punches.push(store.punchLater(place, size))
    })
    await allEnded(punches)
  }

  zero(offset: Bytes, length: Bytes): void {
    mustHaveRange(this, 'zero', offset, length)
    this.forEachPart(offset, length, (store, place, size) => store.zero(place, size))
  }

  reserve(offset: Bytes, length: Bytes): boolean {
    mustHaveRange(this, 'reserve', offset, length)
    let isReserved = true
    this.forEachPart(offset, length, (store, place, size) => {
      isReserved &&= store.reserve?.(place, size) ?? false
    })
    return isReserved
  }

  /** Such a store grows by other stores below, never by this call. @throws BAD_ARGUMENT */
  grow(size: Bytes): void {
    if (size === this.size) return
    const detail = `${this.path}: ${this.size} bytes are all that there is, ${size} are wanted`
    throw new ThinfsError('BAD_ARGUMENT', detail)
  }

  close(): void {}
}

/** Bytes left on the fullest of the file systems below some stores; null where none has a limit. */
export function leastAvailable(stores: Iterable<Store>): number | null {
  let least: number | null = null
  for (const store of stores) {
    const available = store.hostRoom?.()?.available
    if (available !== undefined) least = Math.min(available, least ?? available)
  }
  return least
}
