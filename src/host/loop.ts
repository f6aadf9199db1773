/** Loop devices on volumes: losetup(8) makes and ends them, /sys and /proc tell of them. */
import { closeSync, constants, openSync } from 'node:fs'
import { basename } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { errnoOf, ThinfsError } from '../base/index.js'
import {
  type AttachedLoop,
  attachedLoops,
  backingFileOf,
  isOnlyElsewhere,
  isStillAttached,
  loopNamed,
  namesOfUsers,
  openersOf,
  usersOf,
} from './device-users.js'
import { forgetDetached, forgetLoopNames } from './loop-names.js'
import { nameOf, read } from './proc.js'
import { runTool, runToolWithin } from './tool.js'

export interface LoopDevice extends AttachedLoop {
  /** The file itself: device number, as `0:64`, and inode. Null when losetup could not tell. */
  backingId: { device: string; ino: number } | null
}

/** How long losetup may take to attach or detach a device, in milliseconds. */
const LOSETUP_MS = 60_000
/** How long losetup may take to describe all devices: it asks the servers of their files. */
const LIST_MS = 2000
/** How long somebody else, udev for instance, may take to look at a device before he holds it. */
const GRACE_MS = 5000
const POLL_MS = 50
/** How long a loop device that was detached for a moment may be somebody else's. */
const REATTACH_MS = 30_000

/** The properties that a loop device is to have. */
export interface LoopOptions {
  readOnly?: boolean
  /** The kernel looks for a partition table, and makes devices of what is in it. */
  partitions?: boolean
  /** Bytes of a sector; default: 512. */
  sectorSize?: number
}

/**
 * Attaches a loop device to `file`, or finds the one that is: two on one file would not see each
 * other's caches.
 * @param limitMs how long losetup(8) may take: it waits for the file's server
 * @returns the device, such as `/dev/loop0`, and whether it was attached now; then it has no name
 * @throws TOOL_FAILED; VOLUME_BUSY when the one that is there is not as it is wanted; NOT_SUPPORTED
 *   where this user cannot make any, with what there is instead
 */
export async function attachLoop(
  file: string,
  { readOnly = false, partitions = false, sectorSize }: LoopOptions = {},
  limitMs = LOSETUP_MS,
): Promise<{ device: string; isNew: boolean }> {
  const flags = ['--direct-io=on', '--nooverlap']
  if (readOnly) flags.push('--read-only')
  if (partitions) flags.push('--partscan')
  if (sectorSize !== undefined) flags.push(`--sector-size=${sectorSize}`)
  const before = attachedLoops().map(({ path }) => path)
  const making = runToolWithin(limitMs, 'losetup', ...flags, '--find', '--show', file)
  const device = await making.catch(async (err: unknown) => {
    const errno = errnoOfLoops()
    if (errno !== null) throw noLoops(file, errno, err)
    if (!/read-only loop device exists/.test((err as Error).message)) throw err
    const there = (await listLoops()).find(({ backingFile }) => backingFile === file)
    throw isOtherwise(file, there?.path ?? 'a loop device', ['cannot be written to'])
  })
  const sys = `/sys/class/block/${basename(device)}`
  const found = read(`${sys}/queue/logical_block_size`).trimEnd()
  const wrong = [
    readOnly && read(`${sys}/ro`) !== '1\n' && 'can be written to',
    partitions && read(`${sys}/loop/partscan`) !== '1\n' && 'has no partitions',
    sectorSize !== undefined && found !== String(sectorSize) && `has sectors of ${found} bytes`,
  ].filter(what => typeof what === 'string')
  if (wrong.length > 0) throw isOtherwise(file, device, wrong)
  const isNew = !before.includes(device)
  // A number that comes again may have had the names of another device.
  if (isNew) forgetLoopNames(device)
  return { device, isNew }
}

function isOtherwise(file: string, device: string, how: readonly string[]): ThinfsError {
  const what = `${file}: ${device} is on it and ${how.join(', and ')}`
  return new ThinfsError('VOLUME_BUSY', `${what}; thinfs detach takes it away`)
}

/**
 * Why this user cannot make loop devices, as the errno of opening /dev/loop-control; null when he
 * can.
 */
export function errnoOfLoops(): string | null {
  try {
    closeSync(openSync('/dev/loop-control', constants.O_RDWR))
    return null
  } catch (err) {
    return errnoOf(err)
  }
}

function noLoops(file: string, errno: string, cause: unknown): ThinfsError {
  const why: Record<string, string> = {
    EACCES: 'loop devices need root; without it',
    ENOENT: 'this system has no loop devices:',
  }
  const here = why[errno] ?? `loop devices cannot be made here (${errno}):`
  const instead = 'use the file itself: mkfs.ext4, fuse2fs -o fakeroot, guestmount, qemu-nbd'
  return new ThinfsError('NOT_SUPPORTED', `${file}: ${here} ${instead}`, { cause, errno })
}

/**
 * Attaches a device that was detached, to `file`. If somebody else has taken the number meanwhile,
 * this waits until he gives it back.
 * @throws VOLUME_BUSY when he has not after half a minute; TOOL_FAILED
 */
export async function reattachLoop(file: string, device: string): Promise<void> {
  const deadline = Date.now() + REATTACH_MS
  for (;;) {
    try {
      await runTool('losetup', '--direct-io=on', device, file)
      return
    } catch (err) {
      const backing = backingFileOf(basename(device))
      if (backing === '') throw err
      if (Date.now() > deadline) {
        const detail = `${device} was detached from ${file}, and is on ${backing} now`
        throw new ThinfsError('VOLUME_BUSY', detail, { cause: err })
      }
    }
    await setTimeout(POLL_MS)
  }
}

/**
 * Detaches the device, and takes its names away. The kernel detaches a device that is in use later,
 * and reports success all the same, so this looks for users before and after.
 * @param label begins the messages
 * @throws VOLUME_BUSY naming who uses it, and what becomes of it; TOOL_FAILED
 */
export async function detachLoop(path: string, label = ''): Promise<void> {
  const loop = loopNamed(basename(path))
  let held = usersOf(path)
  const patience = Date.now() + GRACE_MS
  while (held.length > 0 && isOnlyElsewhere(path) && Date.now() < patience) {
    await setTimeout(POLL_MS)
    held = usersOf(path)
  }
  if (held.length === 0) held = await openersAfterGrace(path)
  if (held.length > 0) {
    throw new ThinfsError('VOLUME_BUSY', `${label}${path} is ${namesOfUsers(held)}`)
  }
  if (loop.backingFile !== '' && !isStillAttached(loop)) {
    forgetDetached(path)
    return
  }
  await runToolWithin(LOSETUP_MS, 'losetup', '--detach', path)
  const deadline = Date.now() + GRACE_MS
  while (isStillAttached(loop)) {
    if (Date.now() > deadline) {
      const by = [...usersOf(path), ...openersOf(path).map(openBy)]
      const who = by.length === 0 ? 'in use by what /proc does not show' : namesOfUsers(by)
      throw new ThinfsError('VOLUME_BUSY', `${label}${path} is ${who}: it detaches when that ends`)
    }
    await setTimeout(POLL_MS)
  }
  forgetDetached(path)
}

/**
 * For people: the processes that have a device open and do not let go of it in time, as udev does.
 */
export async function openersAfterGrace(path: string): Promise<string[]> {
  const deadline = Date.now() + GRACE_MS
  for (;;) {
    const openers = openersOf(path)
    if (openers.length === 0 || Date.now() > deadline) return openers.map(openBy)
    await setTimeout(POLL_MS)
  }
}

const openBy = (pid: number): string => `open by ${nameOf(pid)}`

/** All attached loop devices. */
export async function listLoops(): Promise<LoopDevice[]> {
  const ids = await readBackingIds()
  return attachedLoops().map(loop => ({ ...loop, backingId: ids.get(loop.path) ?? null }))
}

/**
 * By device path. Empty where losetup is missing, may not look, or waits for a server that hangs.
 */
async function readBackingIds(): Promise<Map<string, { device: string; ino: number }>> {
  const columns = 'NAME,BACK-INO,BACK-MAJ:MIN'
  try {
    const list = ['--list', '--json', '--output', columns]
    const stdout = await runToolWithin(LIST_MS, 'losetup', ...list)
    const { loopdevices }: { loopdevices: Record<string, string | number | null>[] } = JSON.parse(
      stdout || '{"loopdevices":[]}',
    )
    const known = loopdevices.filter(entry => entry['back-maj:min'] && entry['back-ino'])
    return new Map(
      known.map(entry => [
        String(entry.name),
        { device: String(entry['back-maj:min']).trim(), ino: Number(entry['back-ino']) },
      ]),
    )
  } catch {
    return new Map()
  }
}
