/** The place of an ephemeral pool: in memory if there is enough of it, else on disk. */
import { closeSync, ftruncateSync, openSync, realpathSync, rmSync, statfsSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { errnoOf, FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, MIB, ThinfsError } from '../base/index.js'
import { formatSize, formatSizes } from '../config/index.js'
import { native } from '../native.js'

export interface Place {
  /** An absolute path without symbolic links. */
  folder: string
  /** Why there, for people: `/dev/shm is in memory and has 23.5G`. */
  reason: string
}

/** Source: include/uapi/linux/magic.h. */
const TMPFS_MAGIC = 0x01021994
/** Bytes that a place has to have left. Volumes are thin: a large one takes little of it. */
const ROOM_MIN = 256 * MIB
const ROOM_MAX = 1024 * MIB

/**
 * Chooses a folder of the system for a pool: the first of /dev/shm, the user's runtime folder and
 * the folder for temporary files that is in memory, has room, and whose files can have holes:
 * without holes, discarded blocks would go on taking memory. Otherwise the folder for temporary
 * files, wherever that is.
 * @param size bytes of all volumes that are asked for
 * @throws NOT_SUPPORTED when no folder can be written to
 */
export function choosePlace(size: number, candidates: readonly string[] = CANDIDATES): Place {
  const wanted = Math.min(Math.max(size, ROOM_MIN), ROOM_MAX)
  const refusals: string[] = []
  for (const folder of candidates) {
    const why = whyNot(folder, wanted)
    if (why === null) {
      const path = realpathSync(folder)
      return { folder: path, reason: `${path} is in memory and has ${formatSize(room(path))}` }
    }
    refusals.push(`${folder} ${why}`)
  }
  const folder = candidates.at(-1)!
  try {
    canPunch(folder)
    return { folder: realpathSync(folder), reason: refusals.join('; ') }
  } catch (err) {
    const detail = `no folder for a pool: ${refusals.join('; ')}`
    throw new ThinfsError('NOT_SUPPORTED', detail, { cause: err })
  }
}

const runtimeFolder = process.env.XDG_RUNTIME_DIR
const CANDIDATES = ['/dev/shm', ...(runtimeFolder ? [runtimeFolder] : []), tmpdir()]

/** Why a pool cannot be in memory there, as the rest of a sentence; null when it can. */
function whyNot(folder: string, wanted: number): string | null {
  try {
    if (statfsSync(folder).type !== TMPFS_MAGIC) return 'is not in memory'
    const left = room(folder)
    if (left < wanted) {
      const [has, want] = formatSizes(left, wanted)
      return `has ${has} left, wanted ${want}`
    }
    return canPunch(folder) ? null : 'has no files with holes'
  } catch (err) {
    return `cannot be used (${errnoOf(err)})`
  }
}

function room(folder: string): number {
  const { bavail, bsize } = statfsSync(folder)
  return bavail * bsize
}

/** @throws what making a file there throws */
function canPunch(folder: string): boolean {
  const path = join(folder, `.thinfs-${process.pid}-${Math.random().toString(36).slice(2)}`)
  const fd = openSync(path, 'wx+', 0o600)
  try {
    rmSync(path)
    ftruncateSync(fd, MIB)
    native.file_allocate(fd, FALLOC_KEEP_SIZE | FALLOC_PUNCH_HOLE, 0, MIB)
    return true
  } catch (err) {
    if (errnoOf(err) === 'EOPNOTSUPP' || errnoOf(err) === 'ENOTSUP') return false
    throw err
  } finally {
    closeSync(fd)
  }
}
