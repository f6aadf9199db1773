/**
 * Names of loop devices that stay the same whatever their number: links in /run/thinfs/POOL. Not in
 * /dev: a name there that udev did not make is a device that systemd waits for in vain.
 */
import { mkdirSync, renameSync, rmdirSync, rmSync, symlinkSync } from 'node:fs'
import { basename, join } from 'node:path'
import { ThinfsError } from '../base/index.js'
import { backingFileOf } from './device-users.js'
import { list, readLink } from './proc.js'

const FOLDER = '/run/thinfs'

/**
 * Gives a device a name.
 * @param pool the pool's name
 * @returns the path of the name
 * @throws VOLUME_BUSY when another attached device has it
 */
export function nameLoop(pool: string, name: string, device: string): string {
  const path = join(FOLDER, pool, name)
  const other = readLink(path)
  if (other !== '' && other !== device && isAttached(other)) {
    throw new ThinfsError('VOLUME_BUSY', `${path}: it is the name of ${other}, which is attached`)
  }
  mkdirSync(join(FOLDER, pool), { recursive: true, mode: 0o755 })
  const unfinished = `${path}.${process.pid}`
  symlinkSync(device, unfinished)
  renameSync(unfinished, path)
  return path
}

/** Paths of the names that a device has. */
export const namesOfLoop = (device: string): string[] =>
  list(FOLDER)
    .flatMap(pool => list(join(FOLDER, pool)).map(name => join(FOLDER, pool, name)))
    .filter(path => readLink(path) === device)

/** Whether it is attached, to whatever. */
const isAttached = (path: string): boolean => backingFileOf(basename(path)) !== ''

/** Takes the names of a device away, unless it is attached: then they are its. */
export function forgetDetached(device: string): void {
  if (!isAttached(device)) forgetLoopNames(device)
}

/** Takes the names of a device away: they are of one that had the number before. */
export function forgetLoopNames(device: string): void {
  for (const path of namesOfLoop(device)) {
    rmSync(path, { force: true })
    try {
      rmdirSync(join(path, '..'))
    } catch {} // It has other names.
  }
}
