import { ThinfsError } from '../base/index.js'
import type { FoundPool } from './found-pool.js'

/**
 * The pool that a person means.
 * @param wanted its name, as in `vg/pool` or `pool`; there may be none where there is one pool
 * @throws BAD_ARGUMENT, NOT_A_POOL
 */
export function choosePool(
  source: string,
  pools: readonly FoundPool[],
  wanted: string | undefined,
): FoundPool {
  const names = pools.map(({ name }) => name).join(', ')
  if (wanted === undefined) {
    if (pools.length === 1) return pools[0]!
    throw new ThinfsError('BAD_ARGUMENT', `${source}: --pool has to say which one: ${names}`)
  }
  const found = pools.find(({ name }) => name === wanted || name.endsWith(`/${wanted}`))
  if (found !== undefined) return found
  throw new ThinfsError('NOT_A_POOL', `${source}: has no pool ${wanted}; there is ${names}`)
}
