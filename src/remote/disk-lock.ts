/**
 * Locks on the disks of other machines, by their addresses: pools of this machine refuse each other
 * the same disk. Whether another machine may have it, its server has to know.
 */
import { createHash } from 'node:crypto'
import { closeSync, constants, lstatSync, mkdirSync, openSync, realpathSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import {
  addressId,
  errnoOf,
  ioError,
  type RemoteAddress,
  ThinfsError,
  whyNotTrusted,
} from '../base/index.js'
import { native } from '../native.js'

/** The file that is locked for a disk. */
export function lockPathOf(address: RemoteAddress): string {
  const name = createHash('sha256')
    .update(addressId(resolved(address)))
    .digest('hex')
  return join(folderOfLocks(), name.slice(0, 32))
}

/**
 * Locks a disk. The lock is that of the open file: it is inherited with the descriptor and lasts
 * until the last copy is closed.
 * @param readOnly shares it with others that only read
 * @returns the descriptor
 * @throws POOL_IN_USE, NOT_TRUSTED, IO_ERROR
 */
export function lockDisk(address: RemoteAddress, readOnly: boolean): number {
  const path = lockPathOf(address)
  const { O_RDWR, O_CREAT, O_NOFOLLOW } = constants
  let fd: number
  try {
    const folder = folderOfLocks()
    mkdirSync(folder, { recursive: true, mode: 0o700 })
    const why = whyNotTrusted(lstatSync(folder), process.geteuid!())
    if (why !== null) throw new ThinfsError('NOT_TRUSTED', `${folder}: ${why}`)
    fd = openSync(path, O_RDWR | O_CREAT | O_NOFOLLOW, 0o600)
  } catch (err) {
    throw err instanceof ThinfsError ? err : ioError(path, err)
  }
  if (native.file_lock(fd, !readOnly)) return fd
  closeSync(fd)
  throw new ThinfsError('POOL_IN_USE', `${address.text}: another process has it`)
}

function folderOfLocks(): string {
  const uid = process.geteuid!()
  if (uid === 0) return '/run/thinfs/disks'
  const run = process.env.XDG_RUNTIME_DIR
  return run ? join(run, 'thinfs', 'disks') : join(tmpdir(), `thinfs-disks-${uid}`)
}

/** A socket may be reached by several paths. */
function resolved(address: RemoteAddress): RemoteAddress {
  if (address.kind !== 'nbd' || !('path' in address.socket)) return address
  try {
    return { ...address, socket: { path: realpathSync(address.socket.path) } }
  } catch (err) {
    if (errnoOf(err) === 'ENOENT') return address
    throw ioError(address.socket.path, err)
  }
}
