/** Who may write to a pool: one mount at a time, the pool's tenant. */
import { ThinfsError } from '../base/index.js'
import type { Sign, Tenant } from './record.js'

/**
 * The means that keeps everybody but the tenant from writing.
 *
 * `enforced`: the storage refuses the requests of an earlier tenant, whenever they arrive.
 * `connection`: the server lets in one client, and ends what is left of that before it lets in the
 * next. `advisory`: nothing but that all hosts look at the record.
 */
export type Strength = 'enforced' | 'connection' | 'advisory'

/** The right of this mount to write to its pool. What is lost once is lost for good. */
export interface Tenancy {
  readonly strength: Strength
  /** It has turned out that nothing but the record keeps others away. */
  becomeAdvisory?(): void
  /** This mount. */
  readonly tenant: Tenant
  /** Resolves with a FENCED when it is lost, and never otherwise. */
  readonly lost: Promise<ThinfsError>
  readonly counts: TenancyCounts
  /** Looks whether it is held still. @throws FENCED */
  confirm(): Promise<void>
  /** Gives the pool back, after the last write. @throws FENCED, IO_ERROR */
  release(): Promise<void>
}

export interface TenancyCounts {
  /** How often it was looked whether it is held still, and the milliseconds that took. */
  confirms: number
  confirmMs: number
  /** When the last sign of life was written: milliseconds since 1970. */
  signedAt: number
}

/** The content of the place of a record. */
export interface Seen {
  tenant: Tenant | null
  /** The tenant's last sign; null where it has given none. */
  sign: Sign | null
  /** A record is there that is not whole: nobody knows who the tenant is. */
  isDamaged: boolean
}

/** Whether nobody has the pool: nobody ever had, or whoever had it has given it back. */
export const isFree = ({ tenant, sign, isDamaged }: Seen): boolean =>
  !isDamaged && (tenant === null || sign?.gaveBack === true)

/** Whether nobody ever had the pool, as far as its record tells. */
export const isUnused = ({ tenant, isDamaged }: Seen): boolean => tenant === null && !isDamaged

/** Whether two looks found one tenant. */
export const isSameTenant = (one: Seen, other: Seen): boolean =>
  one.isDamaged === other.isDamaged && one.tenant?.mountId === other.tenant?.mountId

/** `served by host7 since 2026-11-29 12:03:05 UTC, last sign 3 s ago`, for people. */
export function describeTenant({ tenant, sign, isDamaged }: Seen): string {
  if (isDamaged) return 'in use by nobody knows whom: the record is damaged'
  if (tenant === null) return 'in use by a host that cannot be seen from here'
  const by = `served by ${tenant.host.name} since ${timeText(1000 * tenant.since)}`
  if (sign === null) return `${by}, no sign of life yet`
  return `${by}, last sign ${Math.max(0, Math.round((Date.now() - sign.time) / 1000))} s ago`
}

/** @param ms since 1970 */
export const timeText = (ms: number): string =>
  `${new Date(ms).toISOString().slice(0, 'YYYY-MM-DDTHH:MM:SS'.length).replace('T', ' ')} UTC`

/** @param pool what the message is about: its pool.yaml */
export const inUse = (pool: string, seen: Seen, cure: string): ThinfsError =>
  new ThinfsError('POOL_IN_USE', `${pool} is ${describeTenant(seen)}; ${cure}`)
