/**
 * The tenancy of a pool: its record is the file `tenant` beside pool.yaml, or on its state disk.
 */
import { randomBytes } from 'node:crypto'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { type Clock, inTime, SYSTEM_CLOCK, TENANT_FILE, ThinfsError } from '../base/index.js'
import type { PoolConfig } from '../config/index.js'
import {
  describeTenant,
  fence,
  inUse,
  isFree,
  isSameTenant,
  isUnused,
  lookAt,
  mayTake,
  nameOfTenant,
  type RecordOptions,
  RecordTenancy,
  Reservation,
  reservationKey,
  type Seen,
  SIGN_PERIOD,
  type Strength,
  type Tenancy,
  TenantFile,
  type TenantPlace,
  thisHost,
} from '../tenancy/index.js'
import { ofImages } from './image-tenancy.js'
import { provenByLocks, servedElsewhere, strengthOf } from './other-tenant.js'
import type { PoolFiles } from './pool-files.js'

/** The end of an earlier tenant: a command fences it, or a person vouches that it is off. */
export type TakeOver = 'fence' | 'off'

/** How a process takes part in the tenancy of its mount. */
export interface MountTenancy {
  /** Of the mount: 32 hexadecimal digits. */
  mountId: string
  /** `nameOfTenant` of the one that cannot write any more; null for none. */
  fenced: string | null
  /** What is done about another tenant; the first engine does it where only that can find one. */
  takeOver?: TakeOver
}

export const newMountId = (): string => randomBytes(16).toString('hex')

/**
 * Sees to it that a tenant writes no more, before its pool is taken over.
 * @param seen without a tenant where nobody can tell who it is
 * @param signal gives it up
 * @returns `nameOfTenant`
 * @throws POOL_IN_USE where nothing was said of how; TOOL_FAILED when the command does not say that
 *   it is done: nothing is changed then; CANCELLED
 */
export async function endTenant(
  config: PoolConfig,
  seen: Seen,
  takeOver: TakeOver,
  signal?: AbortSignal,
): Promise<string> {
  const rule = config.tenancy?.fence
  // The disks themselves refuse its writes, once they are reserved anew.
  const isByDisks =
    config.tenancy?.locks === 'reservations' && rule === undefined && seen.tenant !== null
  if (takeOver === 'fence' && !isByDisks) {
    if (rule === undefined) {
      const why = 'pool.yaml has no tenancy.fence.command that would fence it'
      throw inUse(config.file, seen, `${why}; where it is off: --take-over --old-host-is-off`)
    }
    const host = seen.tenant?.host.name ?? ''
    const address = seen.tenant?.address ?? ''
    await fence(rule, { host, address, pool: config.pool }, signal)
  }
  return nameOfTenant(seen)
}

/** For a command that has the pool for a moment, and opens it not at all. */
export const BRIEFLY = {
  mount: null,
  takesOver: false,
  clock: SYSTEM_CLOCK,
  warn: () => {},
  onConnection: () => {},
}

/** Milliseconds that a file server may take to answer. */
const LOOK_MS = 1000

/**
 * The one that has a pool which this mount has lost: `served by ...`, for people; null if nobody
 * can tell.
 */
export async function whoHasIt({ tenancy, state, folder }: PoolConfig): Promise<string | null> {
  if (tenancy === undefined || state !== undefined) return null
  const looking = lookAt(new TenantFile(join(folder, TENANT_FILE))).catch(() => null)
  const seen = await inTime(LOOK_MS, looking, null)
  return seen === null || isFree(seen) ? null : describeTenant(seen)
}

/** The part that a process has in the tenancy of its pool. */
export interface TenancyOptions {
  /** Null for a command, which has the pool until it closes it. */
  mount: MountTenancy | null
  /** Another process of the mount has it already. */
  takesOver: boolean
  clock: Clock
  warn(what: string): void
  onConnection(what: string): void
  /**
   * Called before the first record of all is written to a disk, on which then is something.
   * @throws NOT_A_POOL
   */
  mustBeThere?(): Promise<void>
}

/**
 * Makes this mount, or this command, the tenant of a pool whose locks it has; or goes on as it for
 * another process of the mount.
 * @returns null for a pool without tenancy, or one that is opened to be read
 * @throws POOL_IN_USE; FENCED; TOOL_FAILED; IO_ERROR
 */
export async function tenancyOf(
  config: PoolConfig,
  files: PoolFiles,
  of: TenancyOptions,
): Promise<Tenancy | null> {
  const { mount, takesOver } = of
  if (config.state?.remote.kind === 'rbd') {
    return ofImages(config, files, {
      how: takesOver ? undefined : mount?.takeOver,
      takesOver: takesOver && mount !== null,
      mountId: mount?.mountId ?? newMountId(),
      options: place => optionsOf(place, 'enforced', of),
      onConnection: of.onConnection,
      ...(of.mustBeThere && { mustBeThere: of.mustBeThere }),
    })
  }
  if (config.state !== undefined) return ofState(config, files, of)
  if (config.tenancy === undefined || files.readOnly) return null
  const place = new TenantFile(...files.folder.file(TENANT_FILE))
  const options = optionsOf(place, strengthOf(config), of)
  const disks = config.tenancy.locks === 'reservations' ? files.disks : null
  if (takesOver && mount !== null) {
    const { mountId } = mount
    const storage = disks && Reservation.of(disks, reservationKey(mountId))
    await storage?.confirm()
    return RecordTenancy.resume({ ...options, storage }, mountId)
  }
  const seen = await lookAt(place)
  const fenced = mount?.fenced ?? null
  const proven = provenByLocks(config)
  if (!mayTake(seen, { host: thisHost(), strength: proven, locks: true, fenced })) {
    throw servedElsewhere(config, seen)
  }
  const mountId = mount?.mountId ?? newMountId()
  const reserve = {
    key: reservationKey(mountId),
    recorded: seen.tenant && reservationKey(seen.tenant.mountId),
    // A person vouches for that whoever has reserved them is off.
    takesAny: mount?.takeOver === 'off',
  }
  const storage = disks && (await Reservation.acquire(disks, reserve))
  try {
    return await acquire(config, { ...options, storage }, mountId, seen)
  } catch (err) {
    await storage?.release().catch(() => {})
    throw err
  }
}

const optionsOf = (
  place: TenantPlace,
  strength: Strength,
  { clock, warn }: TenancyOptions,
): RecordOptions => ({ place, strength, clock, now: Date.now, onWarning: warn })

const acquire = (
  config: PoolConfig,
  options: RecordOptions,
  mountId: string,
  seen: Seen,
): Promise<RecordTenancy> =>
  RecordTenancy.acquire(options, { host: thisHost(), mountId, pool: config.file }, seen)

/** Milliseconds that a tenant without a sign of life is watched: two signs, and a little more. */
const WATCH_MS = 2 * SIGN_PERIOD + 2000
const LOOK_PERIOD = 500
/** Milliseconds in which storage lets this host in, once the other one is fenced. */
export const FENCED_MS = 60_000
const NOBODY: Seen = { tenant: null, sign: null, isDamaged: false }

/**
 * As `tenancyOf`, of a pool whose record is on its state disk. A server that lets in one client
 * ends what is left of that before it lets in the next: the connection is the proof then that a
 * host without a sign of life writes no more. With one that lets in several it is no proof.
 */
async function ofState(
  config: PoolConfig,
  files: PoolFiles,
  of: TenancyOptions,
): Promise<Tenancy | null> {
  const { mount, takesOver } = of
  const how = takesOver ? undefined : mount?.takeOver
  const { disk, isFenced } = await connectTo(config, files, how, of)
  const options = optionsOf(disk, 'connection', of)
  const held = (tenancy: RecordTenancy): RecordTenancy => {
    files.heldBy(tenancy)
    return tenancy
  }
  if (takesOver && mount !== null) return held(await RecordTenancy.resume(options, mount.mountId))
  const seen = await lookAt(disk)
  if (!isFenced && !(await isGone(seen, { disk, files, how }))) {
    if (how === undefined) throw servedElsewhere(config, await lookAt(disk))
    await endTenant(config, seen, how)
  }
  if (files.readOnly) return null
  if (isUnused(seen)) await of.mustBeThere?.()
  return held(await acquire(config, options, mount?.mountId ?? newMountId(), seen))
}

/** Whether a tenant writes no more, as far as that can be told without doing something about it. */
async function isGone(
  seen: Seen,
  of: { disk: TenantPlace; files: PoolFiles; how: TakeOver | undefined },
): Promise<boolean> {
  const { disk, files, how } = of
  if (isFree(seen)) return true
  const as = { host: thisHost(), strength: 'connection', locks: true, fenced: null } as const
  if (mayTake(seen, as)) {
    // This host's own. A process with another /run, or another name of the server, has other locks.
    if (!(await files.isShared())) return true
    const age = seen.sign === null ? 0 : Math.max(0, Date.now() - seen.sign.time)
    return watch(disk, seen, Math.max(0, WATCH_MS - age))
  }
  if (how !== undefined) return false
  const [isSilent, isShared] = await Promise.all([watch(disk, seen, WATCH_MS), files.isShared()])
  return isSilent && !isShared
}

/**
 * Connects to the state disk, and to the others where the pool is to be written; fences another
 * client of them where that is asked for.
 */
async function connectTo(
  config: PoolConfig,
  files: PoolFiles,
  how: TakeOver | undefined,
  { takesOver, onConnection }: TenancyOptions,
): Promise<{ disk: TenantPlace; isFenced: boolean }> {
  let isFenced = false
  for (let deadline = 0; ; ) {
    let disk: TenantPlace | null = null
    try {
      disk = await files.connectState({ onConnection })
      if (!files.readOnly && !takesOver) await files.connectOthers({ onConnection })
      return { disk: disk!, isFenced }
    } catch (err) {
      if (!(err instanceof ThinfsError && err.code === 'POOL_IN_USE')) throw err
      if (how === undefined) {
        const cure = 'where a host has it, thinfs mount --take-over fences that host first'
        const detail = `${err.message}; ${cure}`
        throw new ThinfsError('POOL_IN_USE', detail, { cause: err })
      }
      if (isFenced && performance.now() >= deadline) throw err
      if (isFenced) await sleep(LOOK_PERIOD)
      else {
        await endTenant(config, disk === null ? NOBODY : await lookAt(disk), how)
        isFenced = true
        deadline = performance.now() + FENCED_MS
      }
    }
  }
}

/** Whether a tenant gives no sign of life for so many milliseconds. */
async function watch(place: TenantPlace, before: Seen, period: number): Promise<boolean> {
  const end = performance.now() + period
  while (performance.now() < end) {
    await sleep(LOOK_PERIOD)
    const seen = await lookAt(place)
    if (!isSameTenant(seen, before) || seen.sign?.beat !== before.sign?.beat) return false
  }
  return true
}
