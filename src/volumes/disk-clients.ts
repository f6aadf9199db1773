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
import type { CephClient, RbdDisk } from '../ceph/index.js'
import type { NbdDisk } from '../nbd/index.js'
import type { RemoteDisk } from '../remote/index.js'
import type { RecordTenancy } from '../tenancy/index.js'

/** Milliseconds that the storage has to take its leave, when a process is about to end. */
const FAREWELL = 10_000

export interface DiskOptions {
  /** Nothing will be written. */
  readOnly: boolean
  /** The connection ended, or there is one again: a sentence. */
  onConnection?: (what: string) => void
  /** Whether the disk has the record of the tenant. */
  hasRecord?: boolean
}

/** Reads a part of a disk. */
type Read = (into: Uint8Array, offset: number) => Promise<void>

/** Bytes of the longest name that a storage gives to a client. */
const NAME_MAX = 256

/**
 * The clients by which a process has disks of other machines, for one pool. All images of a pool
 * have one, so that Ceph refuses all or nothing of it.
 */
export class DiskClients {
  /**
   * Called with an image that another client has locked: throws, or has done something so that the
   * lock can be asked for again.
   */
  onHeld: ((disk: RbdDisk) => Promise<void>) | null = null
  /** The image with the record of the tenant, once it is known. */
  state: RbdDisk | null = null
  /** The images that were opened to be written. */
  readonly images: RbdDisk[] = []
  readonly #note: number | null
  #ceph: Promise<CephClient> | null = null
  /** Asked by exports that are connected to again; null: nobody else can have had them. */
  #tenancy: RecordTenancy | null = null
  readonly #exports: { address: NbdAddress; disk: NbdDisk }[] = []
  /** Exports that nobody has asked for yet, by their addresses. */
  readonly #ready = new Map<string, NbdDisk>()

  /**
   * @param note the file that is locked for the first of the disks, in which a process of this
   *   machine leaves the name of its client for the next one; null for a process that only reads
   */
  constructor(note: number | null) {
    this.#note = note
  }

  /**
   * Connects to a disk, once. One that is to be written is nobody else's from then on, as far as
   * the storage can see to that.
   * @throws IO_ERROR, NOT_SUPPORTED, POOL_IN_USE, with the address
   */
  connect(address: RemoteAddress, options: DiskOptions): Promise<RemoteDisk> {
    if (address.kind !== 'nbd') return this.#open(address, options)
    const ready = this.#ready.get(address.text)
    this.#ready.delete(address.text)
    return ready === undefined ? this.#connect(address, options) : Promise.resolve(ready)
  }

  /**
   * Connects to an export that `connect` will be called with, if it has not been.
   * @throws as `connect`
   */
  async prepare(address: RemoteAddress, options: DiskOptions): Promise<void> {
    if (address.kind !== 'nbd') return
    if (this.#exports.some(({ address: { text } }) => text === address.text)) return
    this.#ready.set(address.text, await this.#connect(address, options))
  }

  /** Whether one of the servers that this process is connected to lets in other clients as well. */
  async isShared(): Promise<boolean> {
    const ofServers = new Map(
      this.#exports.map(({ address, disk }) => [JSON.stringify(address.socket), disk]),
    )
    const answers = [...ofServers.values()].map(disk => disk.letsInMore(1))
    return (await Promise.all(answers)).includes(true)
  }

  /** Gives up, in order, what the storage keeps for this process. Throws nothing. */
  async end(): Promise<void> {
    for (const disk of this.#ready.values()) disk.close()
    this.#ready.clear()
    const ceph = await this.#ceph?.catch(() => null)
    if (ceph) await inTime(FAREWELL, ceph.close(), undefined).catch(() => {})
  }

  /** From now on exports are used only while the tenancy is held: when it is lost they end. */
  heldBy(tenancy: RecordTenancy): void {
    this.#tenancy = tenancy
    void tenancy.lost.then(() => {
      for (const { disk } of this.#exports) disk.abandon()
    })
  }

  async #connect(address: NbdAddress, options: DiskOptions): Promise<NbdDisk> {
    const mayGoOn = (read: Read): Promise<void> => this.#mayGoOn(options.hasRecord ? read : null)
    const disk = await connectExport(address, options, mayGoOn)
    this.#exports.push({ address, disk })
    return disk
  }

  /** @param read of the disk that has the record, by a new connection; null for another disk */
  async #mayGoOn(read: Read | null): Promise<void> {
    if (read === null) await this.#tenancy?.confirm()
    else await this.#tenancy?.confirmBy(read)
  }

  async #open(address: RbdAddress, { readOnly }: DiskOptions): Promise<RemoteDisk> {
    const { CephClient, RbdDisk } = await import('../ceph/index.js')
    this.#ceph ??= CephClient.connect(address)
    // A reader opens it to be written as well: otherwise librbd does not say who has the lock.
    const disk = await RbdDisk.open(await this.#ceph, address)
    try {
      if (readOnly) {
        await this.#mustBeFree(disk)
        return disk
      }
      // The process that had the file locked before has ended. Its images are locked until Ceph has
      // noticed.
      const name = await this.#lock(disk)
      this.#keep(name)
      this.images.push(disk)
      return disk
    } catch (err) {
      await disk.end()
      throw err
    }
  }

  /** A reader has no use for what another process changes meanwhile. @throws POOL_IN_USE */
  async #mustBeFree(disk: RbdDisk): Promise<void> {
    const owner = await disk.owner()
    if (owner === null) return
    await this.onHeld?.(disk)
    const detail = `${disk.path}: the client at ${owner} has the image's lock`
    throw new ThinfsError('POOL_IN_USE', detail)
  }

  async #lock(disk: RbdDisk): Promise<string> {
    for (;;) {
      try {
        return await disk.lock(this.#last())
      } catch (err) {
        if (!(err instanceof ThinfsError) || err.code !== 'POOL_IN_USE') throw err
        if (this.onHeld === null) throw err
        await this.onHeld(disk)
      }
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
  mayGoOn: (read: Read) => Promise<void>,
): Promise<NbdDisk> {
  // Most commands have no use for it.
  const { NbdDisk } = await import('../nbd/index.js')
  const told = (what: string): void => onConnection?.(`${address.text}: ${what}`)
  const disk = await NbdDisk.connect(address, { onConnection: told, mayGoOn })
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
