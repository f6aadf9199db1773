/** The machine as it is: what `Devices` needs of /proc, /sys, and the loop devices. */
import { type FileHandle, open, realpath, stat } from 'node:fs/promises'
import { errnoOf, refused } from '../base/index.js'
import { list, openFiles, read, readNamespaces } from '../host/index.js'
import { native } from '../native.js'
import { type DeviceNumber, decodeDevice, nameOfDevice } from './abi.js'
import type { Device } from './device-table.js'
import { Links } from './links.js'
import { backingFileOf, KernelLoops, LOOP_MAJOR, loopPath } from './loops.js'
import type { Lower, Machine } from './machine.js'

const FIFREEZE = 0xc0045877
const FITHAW = 0xc0045878
const O_EXCL = 0o200
const DELETED = / \(deleted\)$/
/** Names of udevd and of its workers. */
const UDEV = /^\(?(systemd-)?udev/

/** Uses of the machine's devices, as they were a moment ago. */
interface Uses {
  at: number
  /** How many descriptors lead to a path below /dev. */
  files: ReadonlyMap<string, number>
  /** Those of udevd, which looks into a device that was written to, and closes it. */
  probes: ReadonlyMap<string, number>
  /** Numbers and nodes of the devices that are mounted. */
  mounted: ReadonlySet<string>
}
/** Looking for them takes about as long. */
const USES_LAST_MS = 20

export class KernelMachine implements Machine {
  readonly loops: KernelLoops
  readonly #links: Links
  readonly #isOurs: (device: DeviceNumber) => boolean
  /** Processes whose descriptors do not count: ours, and the engine's. */
  readonly #ownPids: () => readonly number[]
  #uses: Uses | null = null
  readonly #claims = new Map<string, { count: number; file: Promise<FileHandle> }>()

  /** @param files where the engine's files are */
  constructor(
    files: string,
    isOurs: (device: DeviceNumber) => boolean,
    ownPids: () => readonly number[],
  ) {
    this.loops = new KernelLoops(files)
    this.#links = new Links('/dev')
    this.#isOurs = isOurs
    this.#ownPids = ownPids
  }

  linkUp(device: Device, udevFlags: number): void {
    this.#links.up(device, udevFlags)
  }

  linkDown(device: Device): void {
    this.#links.down(device)
  }

  async freeze({ minor }: Device): Promise<(() => Promise<void>) | null> {
    for (const folder of foldersOn(minor)) {
      const thaw = await freezeAt(folder)
      if (thaw !== null) return thaw
    }
    return null
  }

  async thaw({ minor }: Device): Promise<void> {
    for (const folder of foldersOn(minor)) {
      const file = await open(folder, 'r').catch(() => null)
      // It may not be frozen: EINVAL.
      if (file !== null) await native.file_ioctl_async(file.fd, FITHAW, 0).catch(() => {})
      await file?.close()
    }
  }

  async openCount(device: Device): Promise<number> {
    const { files, mounted } = this.#look()
    const loop = loopPath(device.minor)
    const isMounted = mounted.has(nameOfDevice(device.number)) || mounted.has(loop)
    return countOf(files, device) + (isMounted ? 1 : 0)
  }

  async isHeld(device: Device): Promise<boolean> {
    this.#uses = null
    const count = await this.openCount(device)
    return count > countOf(this.#look().probes, device)
  }

  hasRequests({ minor }: Device): boolean {
    const counts = read(`/sys/block/loop${minor}/inflight`).trim().split(/\s+/)
    return counts.some(count => Number(count) > 0)
  }

  /** Users of all devices, found at once: a client asks about many devices in a row. */
  #look(): Uses {
    const known = this.#uses
    if (known !== null && performance.now() - known.at < USES_LAST_MS) return known
    const files = new Map<string, number>()
    const probes = new Map<string, number>()
    const own = this.#ownPids()
    const count = (path: string, counts = files): void => {
      if (path.startsWith('/dev/')) counts.set(path, (counts.get(path) ?? 0) + 1)
    }
    for (const name of list('/proc')) {
      const pid = Number(name)
      if (!Number.isInteger(pid) || own.includes(pid)) continue
      const paths = openFiles(pid).map(file => file.replace(DELETED, ''))
      for (const path of paths) count(path)
      if (UDEV.test(read(`/proc/${pid}/comm`))) for (const path of paths) count(path, probes)
    }
    for (const line of read('/proc/swaps').split('\n')) count(line.split(/\s/)[0]!)
    const mounts = readNamespaces().flatMap(namespace => namespace.mounts)
    const mounted = new Set(mounts.flatMap(({ device, source }) => [device, source]))
    this.#uses = { at: performance.now(), files, probes, mounted }
    return this.#uses
  }

  async lookUp(word: string, pid: number): Promise<DeviceNumber> {
    if (/^\d{1,4}:\d{1,7}$/.test(word)) {
      const [major, minor] = word.split(':').map(Number) as [number, number]
      const device = { major, minor }
      if (!this.#isOurs(device) && read(`/sys/dev/block/${word}/dev`) === '') {
        throw refused('ENXIO', `${word}: no such device`)
      }
      return device
    }
    try {
      const found = await stat(
        word.startsWith('/') ? `/proc/${pid}/root${word}` : `/proc/${pid}/cwd/${word}`,
      )
      if (found.isBlockDevice()) return decodeDevice(found.rdev)
    } catch {
      // A link that leads elsewhere from there, or nothing.
    }
    throw refused('ENODEV', `${word}: no such block device`)
  }

  async lower(device: DeviceNumber): Promise<Lower> {
    const folder = `/sys/dev/block/${nameOfDevice(device)}`
    const size = Number(read(`${folder}/size`))
    const node = /^DEVNAME=(.*)$/m.exec(read(`${folder}/uevent`))?.[1]
    if (node === undefined) throw refused('ENXIO', `${nameOfDevice(device)}: no such device`)
    const readOnly = read(`${folder}/ro`).trim() === '1'
    const own = { path: `/dev/${node}`, offset: 0, size, readOnly }
    if (device.major !== LOOP_MAJOR) return own
    const path = await fileBelow(device.minor, `${folder}/loop`)
    if (path === null) return own
    return { ...own, path, offset: Number(read(`${folder}/loop/offset`)) }
  }

  async claim(device: DeviceNumber): Promise<void> {
    const key = nameOfDevice(device)
    const known = this.#claims.get(key)
    if (known !== undefined) {
      known.count++
      await known.file
      return
    }
    const { node } = await this.#nodeOf(device)
    const claim = { count: 1, file: open(node, O_EXCL) }
    this.#claims.set(key, claim)
    try {
      await claim.file
    } catch (err) {
      this.#claims.delete(key)
      throw refused(errnoOf(err), `${key} is in use: ${(err as Error).message}`)
    }
  }

  unclaim(device: DeviceNumber): void {
    const key = nameOfDevice(device)
    const claim = this.#claims.get(key)
    if (claim === undefined || --claim.count > 0) return
    this.#claims.delete(key)
    claim.file.then(file => file.close()).catch(() => {})
  }

  async #nodeOf(device: DeviceNumber): Promise<{ node: string }> {
    const { path } =
      device.major === LOOP_MAJOR ? { path: loopPath(device.minor) } : await this.lower(device)
    return { node: path }
  }
}

/** How many of the descriptors lead to the device. */
function countOf(files: ReadonlyMap<string, number>, { minor, names }: Device): number {
  const nodes = [loopPath(minor), ...[...names].map(name => `/dev/mapper/${name}`)]
  return nodes.reduce((sum, node) => sum + (files.get(node) ?? 0), 0)
}

/**
 * The file below a loop device that is not ours; null when its name does not lead to it, and the
 * device has to do.
 */
async function fileBelow(minor: number, folder: string): Promise<string | null> {
  const name = read(`${folder}/backing_file`).replace(/\n$/, '')
  if (name === '') throw refused('ENXIO', `loop${minor} has no file`)
  try {
    const path = await realpath(name)
    const [found, below] = await Promise.all([stat(path), backingFileOf(minor)])
    return found.ino === below.ino ? path : null
  } catch {
    return null
  }
}

/** The mount points of filesystems on the loop device, in this namespace and in others. */
function foldersOn(minor: number): string[] {
  const number = nameOfDevice({ major: LOOP_MAJOR, minor })
  return readNamespaces().flatMap(({ isOwn, pids, mounts }) =>
    mounts
      .filter(({ device, source }) => device === number || source === loopPath(minor))
      .map(({ mountPoint }) => `${isOwn ? '' : `/proc/${pids[0]}/root`}${mountPoint}`),
  )
}

async function freezeAt(folder: string): Promise<(() => Promise<void>) | null> {
  let file: FileHandle
  try {
    file = await open(folder, 'r')
  } catch {
    return null
  }
  try {
    await native.file_ioctl_async(file.fd, FIFREEZE, 0)
  } catch (err) {
    await file.close()
    // Somebody has frozen it already, and will thaw it.
    if (errnoOf(err) === 'EBUSY') return async () => {}
    return null
  }
  return async () => {
    try {
      await native.file_ioctl_async(file.fd, FITHAW, 0)
    } finally {
      await file.close()
    }
  }
}
