/** The rules for the space of a volume: its limit, its reserve, and what it does in a full pool. */
import { isQueueTimeout, MAX_DEVICE_SIZE, QUEUE_TIMEOUTS, ThinfsError } from '../base/index.js'
import type { VolumeRules } from './admin.js'
import type { VolumeEntry } from './volume-table.js'

/** The queue timeout of a volume that has none of its own. */
export const AS_POOL = -1
export const NO_RULES: VolumeRules = {
  limit: 0,
  reserve: 0,
  onFull: 'pool',
  queueTimeout: AS_POOL,
}

/** The rules as volumes.json has them. */
export type RulesOfEntry = Pick<VolumeEntry, 'limit' | 'reserve' | 'on_full' | 'queue_timeout'>

/**
 * An entry with other rules: 0, `pool` and AS_POOL take one away, those left out stay.
 * @throws BAD_ARGUMENT
 */
export function withRules<E extends RulesOfEntry>(
  {
    limit: oldLimit = 0,
    reserve: oldReserve = 0,
    on_full: oldOnFull,
    queue_timeout: oldQueueTimeout = AS_POOL,
    ...rest
  }: E,
  {
    limit = oldLimit,
    reserve = oldReserve,
    onFull = oldOnFull ?? 'pool',
    queueTimeout = oldQueueTimeout,
  }: VolumeRules,
): Omit<E, keyof RulesOfEntry> & RulesOfEntry {
  for (const [what, value] of Object.entries({ limit, reserve })) {
    if (Number.isInteger(value) && value >= 0 && value <= MAX_DEVICE_SIZE) continue
    throw new ThinfsError('BAD_ARGUMENT', `${what} ${value}: up to ${MAX_DEVICE_SIZE} is allowed`)
  }
  if (limit > 0 && reserve > limit) {
    const what = `a reserve of ${reserve} bytes is more than the limit of ${limit}`
    throw new ThinfsError('BAD_ARGUMENT', `${what} lets the volume have`)
  }
  if (onFull !== 'pool' && onFull !== 'queue' && onFull !== 'error') {
    throw new ThinfsError('BAD_ARGUMENT', `on_full ${onFull}: queue, error and none are allowed`)
  }
  if (queueTimeout !== AS_POOL && !isQueueTimeout(queueTimeout)) {
    const allowed = `${QUEUE_TIMEOUTS}, and none are allowed`
    throw new ThinfsError('BAD_ARGUMENT', `queue_timeout ${queueTimeout}: ${allowed}`)
  }
  return {
    ...rest,
    ...(limit > 0 && { limit }),
    ...(reserve > 0 && { reserve }),
    ...(onFull !== 'pool' && { on_full: onFull }),
    ...(queueTimeout !== AS_POOL && { queue_timeout: queueTimeout }),
  }
}
