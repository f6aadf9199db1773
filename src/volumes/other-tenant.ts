/** Finds out who else may have a pool in files: for every command, before it touches one. */
import { join } from 'node:path'
import { TENANT_FILE, type ThinfsError } from '../base/index.js'
import type { PoolConfig } from '../config/index.js'
import { inUse, mayTake, type Seen, type Strength, TenantFile, thisHost } from '../tenancy/index.js'

export const strengthOf = ({ tenancy }: PoolConfig): Strength =>
  (tenancy?.locks ?? 'advisory') === 'advisory' ? 'advisory' : 'enforced'

/** The strength of the pool's locks as a proof. Locks on a disk's node are of this host alone. */
export const provenByLocks = ({ tenancy }: PoolConfig): Strength =>
  tenancy?.locks === 'enforced' ? 'enforced' : 'advisory'

/**
 * The tenant that keeps this host from having the pool, or has it elsewhere; null for none.
 * @param as.hasLocks whether the caller has the pool's locks
 * @param as.fenced see `MountTenancy`
 * @throws IO_ERROR, POOL_MISMATCH
 */
export function tenantInTheWay(
  config: PoolConfig,
  { hasLocks, fenced }: { hasLocks: boolean; fenced: string | null },
): Seen | null {
  const isInFiles = config.tenancy !== undefined && config.state === undefined
  if (!isInFiles || config.ofUser !== undefined) return null
  const seen = new TenantFile(join(config.folder, TENANT_FILE)).look()
  // Locks that are enforced prove something to whoever has them.
  const strength = hasLocks ? provenByLocks(config) : 'advisory'
  return mayTake(seen, { host: thisHost(), strength, locks: true, fenced }) ? null : seen
}

/**
 * Makes the empty file that the record comes to be in, where there is none: from then on all know
 * that many hosts reach the folder.
 * @throws IO_ERROR
 */
export function makeTenantFile({ tenancy, state, folder }: PoolConfig): void {
  if (tenancy !== undefined && state === undefined) new TenantFile(join(folder, TENANT_FILE)).make()
}

/** The error of a mount that a tenant is in the way of. */
export const servedElsewhere = ({ file }: PoolConfig, seen: Seen): ThinfsError =>
  inUse(file, seen, 'thinfs mount --take-over fences that host first')
