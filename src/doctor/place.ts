/** The folder of a pool, and the file systems that its files are on. */
import { closeSync, openSync, realpathSync, rmSync, statSync } from 'node:fs'
import { dirname, join } from 'node:path'
import {
  deviceNumber,
  errnoOf,
  FALLOC_KEEP_SIZE,
  FALLOC_PUNCH_HOLE,
  MIB,
  SEEK_HOLE,
  ThinfsError,
} from '../base/index.js'
import { loadConfig, type PoolConfig } from '../config/index.js'
import { native } from '../native.js'
import { type Finding, fail, ok, readText, reasonOf, warn } from './finding.js'

/** @param file the pool.yaml; null for a folder that has none yet */
export function lookAtPlace(folder: string, file: string | null): Finding[] {
  if (file === null) return [tryHoles(folder, false)]
  let config: PoolConfig
  try {
    config = loadConfig(file)
  } catch (err) {
    if (!(err instanceof ThinfsError)) throw err
    return [fail('pool', `${err.message} (${err.code})`)]
  }
  return [ok('pool', config.file), lookAtData(config)]
}

function lookAtData({ folder, data }: PoolConfig): Finding {
  if (data.remote) return ok('data', `${data.path}: on another machine, which is not asked`)
  const stat = statSync(data.path, { throwIfNoEntry: false })
  if (stat?.isBlockDevice()) return lookAtDisk(data.path, stat.rdev)
  return tryHoles(stat === undefined ? folder : dirname(realpathSync(data.path)), true)
}

/** Whether a block device takes discards. */
function lookAtDisk(path: string, rdev: number): Finding {
  const check = 'discards'
  const queue = `/sys/dev/block/${deviceNumber(rdev)}/queue`
  // A partition has its disk's queue.
  const most =
    readText(`${queue}/discard_max_bytes`) ?? readText(`${queue}/../../queue/discard_max_bytes`)
  return Number(most ?? 0) > 0
    ? ok(check, `${path} takes them`)
    : warn(check, `${path} takes none: space that is trimmed is not given back to it`)
}

/** Makes a hole in a file of its own, as discards do in the pool's data. */
function tryHoles(folder: string, isPool: boolean): Finding {
  const check = 'holes'
  const path = join(folder, `.thinfs-doctor-${process.pid}`)
  let fd: number
  try {
    fd = openSync(path, 'wx', 0o600)
    rmSync(path)
  } catch (err) {
    const found = `${folder}: ${reasonOf(err)}`
    return isPool ? fail(check, found) : warn(check, found, 'thinfs doctor FOLDER')
  }
  try {
    native.file_write(fd, Buffer.alloc(MIB, 1), 0, MIB, 0)
    native.file_allocate(fd, FALLOC_KEEP_SIZE | FALLOC_PUNCH_HOLE, 0, MIB)
    const isHole = native.file_seek(fd, 0, SEEK_HOLE) === 0
    if (isHole) return ok(check, `${folder}: space that is trimmed goes back`)
    return warn(
      check,
      `${folder}: holes are filled by its file system: discards free nothing there`,
    )
  } catch (err) {
    const why = errnoOf(err) === 'EOPNOTSUPP' ? 'its file system makes none' : reasonOf(err)
    return warn(check, `${folder}: ${why}: space that is trimmed is not given back to the host`)
  } finally {
    closeSync(fd)
  }
}
