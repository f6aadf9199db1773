import { isUtf8 } from 'node:buffer'
import { ThinfsError } from '../base/index.js'
import type { Slots } from './slots.js'

/**
 * Reads `count` names, each ended by NUL, from byte `at` of a request that ends at `end`.
 * @throws BAD_NAME when one is missing or is not UTF-8
 */
export function readNames(slots: Slots, at: number, end: number, count: number): string[] {
  const names: string[] = []
  let rest = slots.buffer.subarray(at, end)
  for (let i = 0; i < count; i++) {
    const nul = rest.indexOf(0)
    if (nul < 0) throw new ThinfsError('BAD_NAME', 'a request ends within a name')
    const name = rest.subarray(0, nul)
    if (!isUtf8(name)) {
      throw new ThinfsError('BAD_NAME', `${name.toString('latin1')}: a name is UTF-8`)
    }
    names.push(name.toString())
    rest = rest.subarray(nul + 1)
  }
  return names
}
