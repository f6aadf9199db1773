/** Connecting to the disks of other machines: one case for each kind of address. */
import { ftruncateSync, readSync, writeSync } from 'node:fs'
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

/** Bytes of the longest name that a storage gives to a client. */
const NAME_MAX = 256

/**
 * The clients by which a process has disks of other machines, for one pool. All images of a pool
 * have one, so that Ceph refuses all or nothing of it.
 */
export class DiskClients {
  readonly #note: number | null
  #ceph: Promise<CephClient> | null = null

  /**
   * @param note the file that is locked for the first of the disks, in which a process of this
   *   machine leaves the name of its client for the next one; null for a process that only reads
   */
  constructor(note: number | null) {
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
      // The process that had the file locked before has ended. Its images are locked until Ceph has
      // noticed.
      const name = await disk.lock(this.#last())
      this.#keep(name)
      return disk
    } catch (err) {
      await disk.end()
      throw err
    }
  }

  #last(): string | null {
    if (this.#note === null) return null
    const text = Buffer.alloc(NAME_MAX)
    const length = readSync(this.#note, text, 0, text.length, 0)
    return length === 0 ? null : text.toString('utf8', 0, length)
  }

  #keep(name: string): void {
    if (this.#note === null || name === this.#last()) return
    ftruncateSync(this.#note, 0)
    writeSync(this.#note, name, 0)
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
