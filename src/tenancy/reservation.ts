/**
 * The tenancy of a pool whose files are disks that keep persistent reservations: the disks refuse
 * the writes of every other host, whenever they arrive.
 *
 * The key of a tenant follows from the record, so that the next host knows whom to preempt. It
 * never preempts a key that the record does not name unless a person has said that he may: another
 * host may have taken the pool over a moment ago, and not be in the record yet.
 *
 * A disk that was reserved when its tenant came, by one that was preempted or by one that left it
 * so, stays reserved when he leaves: what a host which hung sends once it can is refused then as
 * well.
 */
import { ThinfsError } from '../base/index.js'

/** The key that a host registers with at a disk: 1 to 2^64 - 1. */
export type ReservationKey = bigint

/** The calls that a reservation makes to a disk. See `ReservedDisk` of the room `storage`. */
export interface Reservable {
  readonly path: string
  register(key: ReservationKey): Promise<void>
  reserve(key: ReservationKey): Promise<boolean>
  preempt(key: ReservationKey, victim: ReservationKey): Promise<boolean>
  release(key: ReservationKey): Promise<void>
  holder(): Promise<ReservationKey | null | undefined>
  dropCache(): Promise<void>
}

export interface AcquireOptions {
  /** Of this mount. */
  key: ReservationKey
  /** The key of the tenant that the record names, whose place this one may take; null for none. */
  recorded: ReservationKey | null
  /** Whether a reservation that the record does not name may be taken: a person says so. */
  takesAny: boolean
}

/** @param mountId of a tenant: 32 hexadecimal digits, random */
export const reservationKey = (mountId: string): ReservationKey =>
  BigInt(`0x${mountId.slice(0, 16)}`) || 1n // 0 stands for no key

export class Reservation {
  readonly #disks: readonly Reservable[]
  readonly #key: ReservationKey
  /** Disks that stay reserved. */
  readonly #kept: ReadonlySet<Reservable>
  #failure: ThinfsError | null = null

  private constructor(
    disks: readonly Reservable[],
    key: ReservationKey,
    kept: ReadonlySet<Reservable>,
  ) {
    this.#disks = disks
    this.#key = key
    this.#kept = kept
  }

  /**
   * Reserves all disks of a pool.
   * @throws POOL_IN_USE when another host has one, NOT_SUPPORTED where one keeps no reservations,
   *   IO_ERROR: then none is this host's, but for those of a host that was preempted, which stay
   *   reserved
   */
  static async acquire(
    disks: readonly Reservable[],
    { key, recorded, takesAny }: AcquireOptions,
  ): Promise<Reservation> {
    const kept = new Set<Reservable>()
    const registered: Reservable[] = []
    try {
      for (const disk of disks) {
        // Writes that an earlier mount here has left must not follow another host's writes.
        await disk.dropCache()
        const holder = await disk.holder()
        await disk.register(key)
        registered.push(disk)
        if (await disk.reserve(key)) {
          if (holder) kept.add(disk)
        } else {
          const victim = takesAny ? (holder ?? recorded) : recorded
          if (victim === null || !(await disk.preempt(key, victim))) throw inUse(disk, holder)
          // The victim may have been registered, and the reservation another's.
          if (!(await disk.reserve(key))) throw inUse(disk, await disk.holder())
          kept.add(disk)
        }
        // The one before may have written until now.
        await disk.dropCache()
      }
      return new Reservation(disks, key, kept)
    } catch (err) {
      for (const disk of registered) if (!kept.has(disk)) await disk.release(key).catch(() => {})
      throw err
    }
  }

  /**
   * That which a process of this mount before has acquired. It releases nothing: what it found is
   * not known any more.
   */
  static of(disks: readonly Reservable[], key: ReservationKey): Reservation {
    return new Reservation(disks, key, new Set(disks))
  }

  /**
   * Asks the disks whether they are this tenant's.
   * @throws FENCED when another has one, or nobody can tell; from then on always
   */
  async confirm(): Promise<void> {
    if (this.#failure !== null) throw this.#failure
    for (const disk of this.#disks) {
      const why = await this.#whyNotOurs(disk).catch((err: Error) => err.message)
      if (why === null) continue
      this.#failure ??= new ThinfsError('FENCED', `${disk.path}: ${why}`)
      throw this.#failure
    }
  }

  async #whyNotOurs(disk: Reservable): Promise<string | null> {
    const holder = await disk.holder()
    // Another path of this host may have the reservation: to reserve again by this one would fail.
    const isOurs = holder === undefined ? await disk.reserve(this.#key) : holder === this.#key
    if (isOurs) return null
    return holder
      ? `reserved by another host, with key ${hex(holder)}`
      : 'its reservation was taken away'
  }

  /** Gives the disks up, after the last write. @throws IO_ERROR */
  async release(): Promise<void> {
    if (this.#failure !== null) return
    for (const disk of this.#disks) if (!this.#kept.has(disk)) await disk.release(this.#key)
  }
}

function inUse({ path }: Reservable, holder: ReservationKey | null | undefined): ThinfsError {
  const by = holder ? `, with key ${hex(holder)}` : ''
  const what = `${path}: another host has reserved it${by}, which the record does not name`
  const cure = 'thinfs mount --take-over --old-host-is-off takes it all the same'
  return new ThinfsError('POOL_IN_USE', `${what}; ${cure}`)
}

const hex = (key: ReservationKey): string => `0x${key.toString(16)}`
