/**
 * A tenancy by the record alone: it tells whoever wants the pool who has it, and tells a tenant
 * that another one has it now. It does not keep a process that sleeps from a write after its last
 * look: locks, the server's one connection or the fence command do that.
 */
import { type Clock, isLost, ThinfsError } from '../base/index.js'
import type { Host } from './host.js'
import { DAMAGED, encodeSign, encodeTenant, TENANCY_BLOCK, type Tenant } from './record.js'
import { inUse, isSameTenant, type Seen, type Strength, type Tenancy, timeText } from './tenancy.js'
import { lookAt, type TenantPlace, tenantAt } from './tenant-place.js'

/** Milliseconds between two signs of life. */
export const SIGN_PERIOD = 5000

export interface RecordOptions {
  place: TenantPlace
  strength: Strength
  /** The part of the storage that keeps others away, where it can be asked. */
  storage?: { confirm(): Promise<void>; release(): Promise<void> } | null
  clock: Clock
  /** Milliseconds since 1970. */
  now: () => number
  /** A sign of life could not be written: a sentence. */
  onWarning: (what: string) => void
}

export class RecordTenancy implements Tenancy {
  strength: Strength
  readonly tenant: Tenant
  readonly lost: Promise<ThinfsError>
  readonly counts = { confirms: 0, confirmMs: 0, signedAt: 0 }
  readonly #options: RecordOptions
  #beat: number
  #failure: ThinfsError | null = null
  #tell!: (why: ThinfsError) => void
  #cancelSign: (() => void) | null = null
  /** The sign under way, if there is one. */
  #signing: Promise<void> = Promise.resolve()
  #isReleased = false
  #hasWarned = false

  private constructor(options: RecordOptions, tenant: Tenant, beat: number) {
    this.#options = options
    this.strength = options.strength
    this.tenant = tenant
    this.#beat = beat
    this.lost = new Promise(resolve => {
      this.#tell = resolve
    })
  }

  /**
   * Makes a mount the tenant, and gives signs of life from then on. The caller has seen to it that
   * an earlier tenant writes no more.
   * @param judged what it found when it saw to that
   * @throws POOL_IN_USE when somebody else was faster; what the place throws
   */
  static async acquire(
    options: RecordOptions,
    of: { host: Host; mountId: string; address?: string; pool: string },
    judged: Seen,
  ): Promise<RecordTenancy> {
    const { place, now } = options
    const before = await lookAt(place)
    if (!isSameTenant(before, judged)) throw wasFaster(of.pool, before)
    const generation = Math.max(before.tenant?.generation ?? 0, before.sign?.generation ?? 0) + 1
    const { host, mountId, address = '' } = of
    const since = Math.floor(now() / 1000)
    const tenant: Tenant = { generation, since, mountId, host, address }
    await place.write(encodeTenant(tenant), 0)
    await place.flush()
    const after = await lookAt(place)
    if (after.tenant?.mountId !== mountId) throw wasFaster(of.pool, after)
    const tenancy = new RecordTenancy(options, tenant, 0)
    await tenancy.#sign(false)
    tenancy.#signLater()
    return tenancy
  }

  /**
   * Goes on with the tenancy of a mount, for another process of it.
   * @param address what the storage calls that process; left out where it has no names
   * @throws FENCED where somebody else is the tenant by now
   */
  static async resume(
    options: RecordOptions,
    mountId: string,
    address?: string,
  ): Promise<RecordTenancy> {
    const seen = await lookAt(options.place).catch(err => {
      throw unreadable(err)
    })
    if (seen.tenant?.mountId !== mountId) {
      throw fenced(options.place, seen.isDamaged ? DAMAGED : seen.tenant)
    }
    const tenant = { ...seen.tenant, ...(address !== undefined && { address }) }
    if (tenant.address !== seen.tenant.address) {
      await options.place.write(encodeTenant(tenant), 0)
      await options.place.flush()
    }
    const tenancy = new RecordTenancy(options, tenant, seen.sign?.beat ?? 0)
    tenancy.#signLater()
    return tenancy
  }

  becomeAdvisory(): void {
    this.strength = 'advisory'
  }

  /**
   * As `confirm`, by another way to the record.
   * @throws what reading throws, which says nothing of the tenancy
   */
  async confirmBy(read: TenantPlace['read']): Promise<void> {
    if (this.#failure !== null) throw this.#failure
    const { path } = this.#options.place
    this.#mustBeOurs(await tenantAt({ path, read }))
  }

  async confirm(): Promise<void> {
    if (this.#failure !== null) throw this.#failure
    const { place, clock, storage } = this.#options
    const begun = clock.now()
    let refusal: ThinfsError | null
    let found: Awaited<ReturnType<typeof tenantAt>>
    try {
      refusal = storage ? await storage.confirm().then(() => null, asFenced) : null
      found = await tenantAt(place)
    } catch (err) {
      throw this.#lose(isLost(err) ? err : unreadable(err))
    }
    this.counts.confirms++
    this.counts.confirmMs += clock.now() - begun
    this.#mustBeOurs(found, refusal)
  }

  /** @param refusal what the storage says itself; null where it says nothing */
  #mustBeOurs(found: Tenant | typeof DAMAGED | null, refusal: ThinfsError | null = null): void {
    const isOurs = found !== DAMAGED && found?.mountId === this.tenant.mountId
    if (!isOurs) throw this.#lose(fenced(this.#options.place, found))
    if (refusal !== null) throw this.#lose(refusal)
    // Another look may have found that it is lost meanwhile.
    if (this.#failure !== null) throw this.#failure
  }

  async release(): Promise<void> {
    this.#isReleased = true
    this.#cancelSign?.()
    await this.#signing
    await this.confirm()
    await this.#sign(true)
    await this.#options.storage?.release()
  }

  /** Writes a sign of life. */
  async #sign(gaveBack: boolean): Promise<void> {
    const { place, now } = this.#options
    const { generation, mountId } = this.tenant
    const time = now()
    const sign = { generation, mountId, beat: ++this.#beat, time, gaveBack }
    await place.write(encodeSign(sign), TENANCY_BLOCK)
    await place.flush()
    this.counts.signedAt = time
  }

  #signLater(): void {
    this.#cancelSign = this.#options.clock.after(SIGN_PERIOD, () => {
      this.#signing = this.#signInTime()
    })
  }

  async #signInTime(): Promise<void> {
    try {
      await this.confirm()
      await this.#sign(false)
      this.#hasWarned = false
    } catch (err) {
      if (this.#failure !== null) return
      // Nobody depends on it: others see a tenant that gives no sign, and have to fence it.
      if (!this.#hasWarned) this.#options.onWarning(`no sign of life: ${(err as Error).message}`)
      this.#hasWarned = true
    }
    if (!this.#isReleased) this.#signLater()
  }

  #lose(why: ThinfsError): ThinfsError {
    this.#failure ??= why
    this.#cancelSign?.()
    this.#tell(this.#failure)
    return this.#failure
  }
}

const wasFaster = (pool: string, seen: Seen): ThinfsError =>
  inUse(pool, seen, 'it was faster than this mount')

/** Why a mount is not the tenant any more. */
function fenced({ path }: TenantPlace, found: Tenant | typeof DAMAGED | null): ThinfsError {
  if (found === DAMAGED) return unknown(`${path}: the record of the tenant is damaged`)
  if (found === null) return unknown(`${path}: the record of the tenant is gone`)
  const { host, since } = found
  return new ThinfsError('FENCED', `taken over by ${host.name} at ${timeText(1000 * since)}`)
}

const asFenced = (err: unknown): ThinfsError =>
  err instanceof ThinfsError && err.code === 'FENCED' ? err : unreadable(err)

const unreadable = (err: unknown): ThinfsError => unknown((err as Error).message, err)

/** In doubt the pool is not ours. */
const unknown = (detail: string, cause?: unknown): ThinfsError =>
  new ThinfsError('FENCED', `${detail}: another host may have the pool`, { cause })
