import { ThinfsError } from '../base/index.js'

/** The error of what cannot be done while the data of a pool is being made smaller. */
export const shrinkingError = (): ThinfsError =>
  new ThinfsError('POOL_SHRINKING', 'thinfs shrink is under way: wait for its end, or interrupt it')
