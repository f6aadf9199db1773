/** Connecting to the disks of other machines: one case for each kind of address. */
import { PAGE_SIZE, type RemoteAddress, ThinfsError } from '../base/index.js'
import type { RemoteDisk } from '../remote/index.js'

export interface DiskOptions {
  /** Nothing will be written. */
  readOnly: boolean
  /** The connection ended, or there is one again: a sentence. */
  onConnection?: (what: string) => void
}

/**
 * Connects to a disk, once.
 * @throws IO_ERROR, NOT_SUPPORTED, with the address
 */
export async function connectDisk(
  address: RemoteAddress,
  { readOnly, onConnection }: DiskOptions,
): Promise<RemoteDisk> {
  if (address.kind === 'rbd') {
    throw new ThinfsError('NOT_SUPPORTED', `${address.text}: images of Ceph are not supported yet`)
  }
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
