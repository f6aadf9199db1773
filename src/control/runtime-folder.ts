import { createHash } from 'node:crypto'
import {
  accessSync,
  constants,
  existsSync,
  mkdirSync,
  readlinkSync,
  realpathSync,
  statfsSync,
} from 'node:fs'
import { join } from 'node:path'
import { errnoOf, isOutOfReach, TENANT_FILE } from '../base/index.js'

/**
 * File systems that other machines may have too: there each would replace, and remove, the sockets
 * of the other. Any that is served by FUSE may be one. Source: linux/magic.h, and the file systems'
 * own headers.
 */
const SHARED: ReadonlySet<number> = new Set([
  0x65735546, // FUSE: GlusterFS, virtiofs, …
  0x6969, // NFS
  0x00c36400, // CephFS
  0xff534d42, // CIFS
  0xfe534d42, // SMB2
  0x01021997, // 9P
  0x01161970, // GFS2
  0x7461636f, // OCFS2
  0x0bd00bd0, // Lustre
])

/**
 * The folder of a mounted pool's sockets, log and daemon.json, which are this machine's alone: the
 * pool's own, or, if that is on a read-only file system, or other machines may have it, or nobody
 * reaches it any more, one below /run, which may not be there.
 * @param folder the pool's, by whatever path
 */
export function runtimeFolder(folder: string): string {
  if (!isNoPlace(folder)) return folder
  const uid = process.geteuid!()
  const run = uid === 0 ? '/run' : (process.env.XDG_RUNTIME_DIR ?? `/run/user/${uid}`)
  if (!existsSync(run)) return folder
  const name = createHash('sha256').update(realPathOf(folder)).digest('hex').slice(0, 16)
  return join(run, 'thinfs', name)
}

/** Whether the folder is no place for what is this machine's alone. */
function isNoPlace(folder: string): boolean {
  if (existsSync(join(folder, TENANT_FILE))) return true
  try {
    accessSync(folder, constants.W_OK)
    return SHARED.has(statfsSync(folder).type)
  } catch (err) {
    return errnoOf(err) === 'EROFS' || isOutOfReach(err)
  }
}

/** The real path, or the one that it was held or mounted by if the file system does not answer. */
function realPathOf(folder: string): string {
  try {
    return realpathSync(folder)
  } catch (err) {
    if (!isOutOfReach(err)) throw err
    try {
      return readlinkSync(folder)
    } catch {
      return folder
    }
  }
}

/** As `runtimeFolder`, and makes the folder if need be: for a process that serves the pool. */
export function makeRuntimeFolder(folder: string): string {
  const path = runtimeFolder(folder)
  try {
    if (path !== folder) mkdirSync(path, { recursive: true, mode: 0o700 })
  } catch {
    // The first to open a file in it reports the failure, with a path.
  }
  return path
}
