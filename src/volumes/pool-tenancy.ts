/** The tenancy of a pool in files: its record is the file `tenant` beside pool.yaml. */
import { randomBytes } from 'node:crypto'
import { join } from 'node:path'
import { type Clock, inTime, TENANT_FILE } from '../base/index.js'
import type { PoolConfig } from '../config/index.js'
import {
  describeTenant,
  fence,
  inUse,
  isFree,
  lookAt,
  mayTake,
  nameOfTenant,
  RecordTenancy,
  type Seen,
  type Tenancy,
  TenantFile,
  thisHost,
} from '../tenancy/index.js'
import { servedElsewhere, strengthOf } from './other-tenant.js'
import type { PoolFiles } from './pool-files.js'

/** The end of an earlier tenant: a command fences it, or a person vouches that it is off. */
export type TakeOver = 'fence' | 'off'

/** How a process takes part in the tenancy of its mount. */
export interface MountTenancy {
  /** Of the mount: 32 hexadecimal digits. */
  mountId: string
  /** `nameOfTenant` of the one that cannot write any more; null for none. */
  fenced: string | null
}

export const newMountId = (): string => randomBytes(16).toString('hex')

/**
 * Sees to it that a tenant writes no more, before its pool is taken over.
 * @param signal gives it up
 * @returns `nameOfTenant`
 * @throws POOL_IN_USE where nothing was said of how; TOOL_FAILED when the command does not say that it
 *   is done: nothing is changed then; CANCELLED
 */
export async function endTenant(
  config: PoolConfig,
  seen: Seen,
  takeOver: TakeOver,
  signal?: AbortSignal,
): Promise<string> {
  if (takeOver === 'fence') {
    const rule = config.tenancy?.fence
    const { tenant } = seen
    if (rule === undefined || tenant === null) {
      const why =
        tenant === null
          ? 'there is nobody to fence'
          : 'pool.yaml has no tenancy.fence.command that would fence it'
      throw inUse(config.file, seen, `${why}; where it is off: --take-over --old-host-is-off`)
    }
    const { host, address } = tenant
    await fence(rule, { host: host.name, address, pool: config.pool }, signal)
  }
  return nameOfTenant(seen)
}

/** Milliseconds that a file server may take to answer. */
const LOOK_MS = 1000

/**
 * The one that has a pool which this mount has lost: `served by ...`, for people; null if nobody
 * can tell.
 */
export async function whoHasIt({ tenancy, folder }: PoolConfig): Promise<string | null> {
  if (tenancy === undefined) return null
  const looking = lookAt(new TenantFile(join(folder, TENANT_FILE))).catch(() => null)
  const seen = await inTime(LOOK_MS, looking, null)
  return seen === null || isFree(seen) ? null : describeTenant(seen)
}

/**
 * Makes this mount, or this command, the tenant of a pool whose locks it has; or goes on as it for
 * another process of the mount.
 * @returns null for a pool without tenancy, or one that is opened to be read
 * @throws POOL_IN_USE; FENCED; IO_ERROR
 */
export async function tenancyOf(
  config: PoolConfig,
  files: PoolFiles,
  of: { mount: MountTenancy | null; takesOver: boolean; clock: Clock; warn(what: string): void },
): Promise<Tenancy | null> {
  if (config.tenancy === undefined || files.readOnly) return null
  const { mount, takesOver, clock, warn } = of
  const place = new TenantFile(...files.folder.file(TENANT_FILE))
  const strength = strengthOf(config)
  const options = { place, strength, clock, now: Date.now, onWarning: warn }
  if (takesOver && mount !== null) return RecordTenancy.resume(options, mount.mountId)
  const host = thisHost()
  const seen = await lookAt(place)
  if (!mayTake(seen, { host, strength, locks: true, fenced: mount?.fenced ?? null })) {
    throw servedElsewhere(config, seen)
  }
  const mountId = mount?.mountId ?? newMountId()
  return RecordTenancy.acquire(options, { host, mountId, pool: config.file }, seen)
}
