/**
 * The tenancy of a pool on images of Ceph: the exclusive locks of all of them, which one client
 * has. Ceph refuses whatever a client sends that it has on its blocklist, so a host that was cut
 * off or slept does no harm when it comes back. The record on the state image says who it is.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { ThinfsError } from '../base/index.js'
import type { RbdDisk } from '../ceph/index.js'
import type { PoolConfig } from '../config/index.js'
import {
  inUse,
  isFree,
  isUnused,
  lookAt,
  type RecordOptions,
  RecordTenancy,
  type Tenancy,
  type Tenant,
  type TenantPlace,
  thisHost,
} from '../tenancy/index.js'
import { servedElsewhere } from './other-tenant.js'
import type { PoolFiles } from './pool-files.js'

/** Milliseconds between two looks at a record that does not name the client which has the lock. */
const LOOK_PERIOD = 500
/** How often it is looked at: that client may be about to write its record. */
const LOOKS = 20

export interface ImageTenancyOptions {
  /** The way to take the pool from another tenant; undefined: that one keeps it. */
  how: 'fence' | 'off' | undefined
  /** Another process of the mount was the tenant until it ended. */
  takesOver: boolean
  mountId: string
  options: (place: TenantPlace) => RecordOptions
  onConnection: (what: string) => void
  /** See `TenancyOptions`. */
  mustBeThere?: () => Promise<void>
}

/**
 * Makes this mount, or this command, the tenant of a pool on images; or goes on as it for another
 * process of the mount.
 * @returns null for a pool that is opened to be read
 * @throws POOL_IN_USE; FENCED; IO_ERROR
 */
export async function ofImages(
  config: PoolConfig,
  files: PoolFiles,
  of: ImageTenancyOptions,
): Promise<Tenancy | null> {
  const { RbdLocks, REFUSED_FOR } = await import('../ceph/index.js')
  const { takesOver, mountId, onConnection, how } = of
  const { clients } = files
  let looks = 0
  const fencedClients = new Set<string>()
  clients.onHeld = async disk => {
    // The state image comes first, and can be read without its lock.
    const state = clients.state ?? disk
    clients.state = state
    const owner = await disk.owner()
    if (owner === null) return
    if (fencedClients.has(owner)) return RbdLocks.fence([disk], owner)
    const seen = await lookAt(state)
    if (takesOver) throw fenced(seen.tenant, mountId, owner)
    if (how === undefined) throw servedElsewhere(config, seen)
    if (seen.tenant?.address === owner) {
      onConnection(`${disk.path}: the client at ${owner} is fenced`)
      fencedClients.add(owner)
      return RbdLocks.fence([disk], owner)
    }
    if (++looks > LOOKS) {
      const cure = `the client at ${owner} has the lock of ${disk.path}, and the record names another; where it may be ended: ceph osd blocklist add ${owner}`
      throw inUse(config.file, seen, cure)
    }
    await sleep(LOOK_PERIOD)
  }
  const disk = (await files.connectState({ onConnection })) as RbdDisk
  clients.state = disk
  if (files.readOnly) return null
  const address = (await disk.owner()) ?? ''
  const seen = await lookAt(disk)
  // librbd breaks the lock of a host that Ceph takes for dead, and blocks it for an hour. That host
  // may only sleep, and for longer.
  const before = takesOver || isFree(seen) ? undefined : seen.tenant?.address
  if (before && before !== address) await disk.client.blocklist(before, REFUSED_FOR)
  if (!takesOver && isUnused(seen)) await of.mustBeThere?.()
  const record = takesOver
    ? await RecordTenancy.resume(of.options(disk), mountId, address)
    : await RecordTenancy.acquire(
        of.options(disk),
        { host: thisHost(), mountId, address, pool: config.file },
        seen,
      )
  return new ImageTenancy(record, disk, clients.images)
}

/** The record with the locks, which keep everybody else from writing. */
class ImageTenancy implements Tenancy {
  readonly strength = 'enforced'
  readonly lost: Promise<ThinfsError>
  readonly #record: RecordTenancy
  readonly #state: RbdDisk
  readonly #images: readonly RbdDisk[]

  /** @param images all of the pool, as they come to be open */
  constructor(record: RecordTenancy, state: RbdDisk, images: readonly RbdDisk[]) {
    this.#record = record
    this.#state = state
    this.#images = images
    this.lost = Promise.race([record.lost, state.client.failed.then(lostError)])
  }

  get tenant(): Tenant {
    return this.#record.tenant
  }

  get counts(): RecordTenancy['counts'] {
    return this.#record.counts
  }

  /** Asks the cluster whose the locks are. Where one is lost, nothing is sent to it any more. */
  async confirm(): Promise<void> {
    const { client } = this.#state
    const { address } = this.tenant
    const begun = performance.now()
    try {
      const owners = await Promise.all(this.#images.map(image => image.owner()))
      const lost = owners.findIndex(owner => owner !== address)
      if (lost >= 0) {
        // Without an entry in the blocklist the record can be read: it says who has the pool.
        await this.#record.confirm()
        const whose = owners[lost] ? `the client at ${owners[lost]} has it` : 'nobody has it'
        const detail = `${this.#images[lost]!.path}: the lock is lost: ${whose}`
        throw new ThinfsError('FENCED', detail)
      }
    } catch (err) {
      if (!(err instanceof ThinfsError)) throw err
      client.fail(lostError(err))
      throw lostError(err)
    }
    this.counts.confirms++
    this.counts.confirmMs += performance.now() - begun
  }

  /** Gives the pool back. The locks go with the images. */
  release(): Promise<void> {
    return this.#record.release()
  }
}

/** The error of a process of a mount whose images another client has by now. */
function fenced(tenant: Tenant | null, mountId: string, owner: string): ThinfsError {
  const by =
    tenant === null || tenant.mountId === mountId ? `the client at ${owner}` : tenant.host.name
  return new ThinfsError('FENCED', `taken over by ${by}`)
}

const lostError = (err: ThinfsError): ThinfsError =>
  err.code === 'FENCED' ? err : new ThinfsError('FENCED', err.message, { cause: err })
