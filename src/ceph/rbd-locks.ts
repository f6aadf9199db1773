/**
 * Who may write to a pool whose disks are images: the client that has the exclusive locks of all of
 * them. The cluster itself refuses whatever a client sends that it has on its blocklist, whenever
 * it arrives; so a host that was cut off, or slept, can do no harm when it comes back.
 */
import { ThinfsError } from '../base/index.js'
import type { RbdDisk } from './rbd-disk.js'

/** Seconds that a host which was fenced is refused: longer than anything of it can be under way. */
export const REFUSED_FOR = 365 * 24 * 60 * 60

export class RbdLocks {
  /** Settles once, when it is lost. */
  readonly lost: Promise<ThinfsError>
  /** The client that has the locks, as the cluster calls it. */
  readonly address: string
  readonly #disks: readonly RbdDisk[]

  /**
   * Takes the locks of all disks, which have one client. Where a holder is dead the cluster notices
   * that within 30 seconds, and refuses it then.
   * @param previous the address of a client of this host that has ended: its locks are broken at
   *   once
   * @throws POOL_IN_USE with the other's address, IO_ERROR; no lock is held then
   */
  static async acquire(
    disks: readonly RbdDisk[],
    previous: string | null = null,
  ): Promise<RbdLocks> {
    try {
      let address = ''
      for (const disk of disks) address = await disk.lock(previous)
      return new RbdLocks(disks, address)
    } catch (err) {
      for (const disk of disks) await disk.unlock().catch(() => {})
      throw err
    }
  }

  /** The address of the client that has the lock of one of them; null where nobody has. */
  static async owner(disks: readonly RbdDisk[]): Promise<string | null> {
    for (const disk of disks) {
      const owner = await disk.owner()
      if (owner !== null) return owner
    }
    return null
  }

  /**
   * Has the cluster refuse a client from now on, and takes its locks from it. Another one's locks
   * stay.
   */
  static async fence(disks: readonly RbdDisk[], address: string): Promise<void> {
    const { client } = disks[0]!
    await client.blocklist(address, REFUSED_FOR)
    for (const disk of disks) if ((await disk.owner()) === address) await disk.breakLock(address)
    // Breaking a lock makes an entry of an hour, in the place of the one before.
    await client.blocklist(address, REFUSED_FOR)
  }

  private constructor(disks: readonly RbdDisk[], address: string) {
    this.#disks = disks
    this.address = address
    const { client } = disks[0]!
    this.lost = client.failed.then(lostError)
  }

  /**
   * Called before what only a tenant may write. Where it is lost, the client fails with it.
   * @throws LOCK_LOST, and from then on always
   */
  async confirm(): Promise<void> {
    const { client } = this.#disks[0]!
    try {
      await Promise.all(this.#disks.map(disk => this.#mustHave(disk)))
    } catch (err) {
      if (!(err instanceof ThinfsError)) throw err
      if (err.code === 'LOCK_LOST') client.fail(err)
      throw client.failure === null ? err : lostError(client.failure)
    }
  }

  /** Gives the locks up. */
  async release(): Promise<void> {
    for (const disk of this.#disks) await disk.unlock()
  }

  async #mustHave(disk: RbdDisk): Promise<void> {
    const owner = await disk.owner()
    if (owner === this.address) return
    const whose = owner === null ? 'nobody has it' : `the client at ${owner} has it`
    throw new ThinfsError('LOCK_LOST', `${disk.path}: the image's lock is lost: ${whose}`)
  }
}

const lostError = (err: ThinfsError): ThinfsError =>
  err.code === 'LOCK_LOST' ? err : new ThinfsError('LOCK_LOST', err.message, { cause: err })
