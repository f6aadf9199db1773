import { type Host, isSameBoot } from './host.js'
import { isFree, type Seen, type Strength } from './tenancy.js'

/** The tenant of a damaged record, who is nobody knows whom. */
export const UNKNOWN = 'unknown'

/** Names the tenant that was found, to say that it cannot write any more. */
export const nameOfTenant = ({ tenant }: Seen): string => tenant?.mountId ?? UNKNOWN

/**
 * Whether a mount may take the place of the tenant that was found, without anything done to that.
 *
 * The caller has the locks, or the connection. Where the storage enforces the tenancy, that alone
 * is the proof: whoever had them before cannot write any more. A host that has been started again
 * has ended its own mounts.
 * @param locks whether processes of one boot keep each other out by locks
 * @param fenced `nameOfTenant` of one that cannot write any more: a command or a person says so
 */
export function mayTake(
  seen: Seen,
  as: { host: Host; strength: Strength; locks: boolean; fenced: string | null },
): boolean {
  const { host, strength, locks, fenced } = as
  if (isFree(seen) || strength === 'enforced' || nameOfTenant(seen) === fenced) return true
  const { tenant } = seen
  if (tenant === null) return false
  if (isSameBoot(tenant.host, host)) return locks
  return isSameMachine(tenant.host, host)
}

/** Whether one is the other before it was started again. */
const isSameMachine = (one: Host, other: Host): boolean =>
  one.machineId === other.machineId && one.name === other.name && !/^0*$/.test(one.machineId)
