/** Connecting to the disks of other machines: one case for each kind of address. */
import {
  inTime,
  type NbdAddress,
  PAGE_SIZE,
  type RbdAddress,
  type RemoteAddress,
  ThinfsError,
} from '../base/index.js'
import type { CephClient } from '../ceph/index.js'
import type { RemoteDisk } from '../remote/index.js'

/** Milliseconds that the storage has to take its leave, when a process is about to end. */
const FAREWELL = 10_000

export interface DiskOptions {
  /** Nothing will be written. */
  readOnly: boolean
  /** The connection ended, or there is one again: a sentence. */
  onConnection?: (what: string) => void
}

/** Where a process notes for the next one of this machine as whom it has the disks. */
export interface ClientNote {
  /** What the last process has noted, which has ended; null for nothing. */
  last(): string | null
  keep(name: string): void
}

/**
 * What a process is to the storage of one pool: the clients by which it has disks of other machines.
 * All images of a pool have one, so that Ceph refuses all or nothing of it.
 */
export class DiskClients {
  readonly #note: ClientNote | null
  #ceph: Promise<CephClient> | null = null

  constructor(note: ClientNote | null = null) {
    this.#note = note
  }

  /**
   * Connects to a disk, once. One that is to be written is nobody else's from then on, as far as the
   * storage can see to that.
   * @throws IO_ERROR, NOT_SUPPORTED, POOL_IN_USE, with the address
   */
  connect(address: RemoteAddress, options: DiskOptions): Promise<RemoteDisk> {
    return address.kind === 'nbd' ? connectExport(address, options) : this.#open(address, options)
  }

  /** Gives up, in order, what the storage keeps for this process. Throws nothing. */
  async end(): Promise<void> {
    const ceph = await this.#ceph?.catch(() => null)
    if (ceph) await inTime(FAREWELL, ceph.close(), undefined).catch(() => {})
  }

  async #open(address: RbdAddress, { readOnly }: DiskOptions): Promise<RemoteDisk> {
    const { CephClient, RbdDisk } = await import('../ceph/index.js')
    this.#ceph ??= CephClient.connect(address)
    const disk = await RbdDisk.open(await this.#ceph, address, { readOnly })
    if (readOnly) return disk
    try {
      const name = await disk.lock(this.#note?.last() ?? null)
      this.#note?.keep(name)
      return disk
    } catch (err) {
      await disk.end()
      throw err
    }
  }
}

async function connectExport(
  address: NbdAddress,
  { readOnly, onConnection }: DiskOptions,
): Promise<RemoteDisk> {
  // Most commands have no use for it.
  const { NbdDisk } = await import('../nbd/index.js')
  const told = (what: string): void => onConnection?.(`${address.text}: ${what}`)
  const disk = await NbdDisk.connect(address, { onConnection: told })
  try {
    if (disk.isReadOnly && !readOnly) {
      const detail = `${address.text}: the server gives it to be read only`
      throw new ThinfsError('IO_ERROR', detail, { errno: 'EROFS' })
    }
    if (disk.minBlock > PAGE_SIZE) {
      const detail = `${address.text}: the server wants requests of ${disk.minBlock} bytes at least, ${PAGE_SIZE} are sent`
      throw new ThinfsError('NOT_SUPPORTED', detail)
    }
    return disk
  } catch (err) {
    disk.close()
    throw err
  }
}
