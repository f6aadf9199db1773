/** Everything that stands on a filesystem: loop devices on its files, and filesystems on those. */
import { basename } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { ThinfsError } from '../base/index.js'
import {
  type AttachedLoop,
  isStillAttached,
  mountsOn,
  namesOfUsers,
  namespaceName,
  otherUsersOf,
} from './device-users.js'
import { findCopies, holdersBesideLoops, isOn, processesWithin } from './holders.js'
import { detachLoop, type LoopDevice, listLoops, openersAfterGrace } from './loop.js'
import { forgetDetached } from './loop-names.js'
import {
  goesWith,
  isWithin,
  type Mount,
  type MountNamespace,
  mountOver,
  readMounts,
  readNamespaces,
} from './mount-table.js'
import { isInOwnNamespace, nameOf, read } from './proc.js'
import { runTool } from './tool.js'

/**
 * How long copies of a mount in other namespaces may take to go, and how often they are looked for.
 */
const PATIENCE_MS = 3000
const RETRY_MS = 100

/**
 * Takes away what stands on a mount, the uppermost first: unmounts the filesystems, then detaches
 * the loop devices. Another program may take the same away meanwhile.
 * @throws VOLUME_BUSY naming what is in use: that is left as it is, and so is all that is below it
 */
export async function clearAbove(mount: Mount): Promise<void> {
  const loops = await listLoops()
  const own = readNamespaces().filter(({ isOwn }) => isOwn)
  for (const loop of loopsAbove(mount, loops, own)) await takeAway(loop)
}

/** The loop devices on a mount, in the order in which they are taken away. */
function loopsAbove(
  mount: Mount,
  loops: readonly LoopDevice[],
  own: MountNamespace[],
): LoopDevice[] {
  const mounts = own.flatMap(({ mounts }) => mounts)
  const lastMount = ({ path }: LoopDevice): number =>
    Math.max(-1, ...mountsOn(path, loops, own).map(({ mount }) => mounts.indexOf(mount)))
  // The last mount may be over another.
  return loops
    .filter(loop => isOn(loop, mount))
    .map(loop => ({ loop, at: lastMount(loop) }))
    .sort((a, b) => b.at - a.at)
    .map(({ loop }) => loop)
}

/**
 * Finds out whether `clearAbove` would find something in use. Nothing is changed.
 * @throws VOLUME_BUSY naming it
 */
export const mustBeClearable = (mount: Mount): Promise<void> =>
  rehearse(rehearsal => rehearsal.clearAbove(mount))

/**
 * Finds out whether somebody holds the mount itself, beside the loop devices on it.
 * @throws MOUNT_BUSY naming him
 */
export async function mustBeHeldByLoopsAlone(mount: Mount): Promise<void> {
  const deadline = Date.now() + PATIENCE_MS
  for (;;) {
    const held = holdersBesideLoops(mount)
    if (held.length === 0) return
    // A container that starts lets go of its copies by itself: `unmount` waits for that, too.
    const passing = findCopies(mount).filter(({ namespace }) => !namespace.isOwn)
    if (held.length > passing.length || Date.now() > deadline) {
      throw new ThinfsError('MOUNT_BUSY', `${mount.mountPoint} is held by ${namesOfUsers(held)}`)
    }
    await sleep(RETRY_MS)
  }
}

/** The same for `takeAway` of some loop devices, one after the other. */
export const mustBeTakeable = (loops: readonly LoopDevice[], label: string): Promise<void> =>
  rehearse(async rehearsal => {
    for (const loop of loops) await rehearsal.takeAway(loop, label)
  })

/** Rehearses again for a while if another mount namespace has copies: it may let go of them. */
async function rehearse(act: (rehearsal: Rehearsal) => Promise<void>): Promise<void> {
  const deadline = Date.now() + PATIENCE_MS
  for (;;) {
    const rehearsal = await Rehearsal.begin()
    try {
      return await act(rehearsal)
    } catch (err) {
      if (!rehearsal.metCopies || Date.now() > deadline) throw err
    }
    await sleep(RETRY_MS)
  }
}

/**
 * Does as `clearAbove` and `takeAway`, on a copy of the mount table: it throws the errors that they
 * would meet on their way, as far as /proc and /sys tell.
 */
class Rehearsal {
  readonly #loops: readonly LoopDevice[]
  readonly #namespaces: MountNamespace[]
  readonly #own: MountNamespace
  /** The paths of the loop devices that go. */
  readonly goes = new Set<string>()
  /** Whether it failed for a mount of another namespace, which stays. */
  metCopies = false

  static async begin(): Promise<Rehearsal> {
    return new Rehearsal(await listLoops(), readNamespaces())
  }

  private constructor(loops: readonly LoopDevice[], namespaces: MountNamespace[]) {
    this.#loops = loops
    this.#namespaces = namespaces
    this.#own = namespaces.find(({ isOwn }) => isOwn)!
  }

  async clearAbove(mount: Mount): Promise<void> {
    for (const loop of loopsAbove(mount, this.#loops, [this.#own])) await this.takeAway(loop)
  }

  async takeAway({ path }: LoopDevice, label = ''): Promise<void> {
    if (this.goes.has(path)) return
    this.goes.add(path)
    await this.#unmountFilesystem(path)
    const held = otherUsersOf(path, this.#loops).filter(({ name }) => !this.#goesByItself(name))
    const users = held.map(({ use }) => use)
    if (users.length === 0) users.push(...(await openersAfterGrace(path)))
    if (users.length === 0) return
    throw new ThinfsError('VOLUME_BUSY', `${label}${path} is ${namesOfUsers(users)}`)
  }

  async #unmountFilesystem(path: string): Promise<void> {
    for (;;) {
      const found = mountsOn(path, this.#loops, this.#namespaces)
      const last = found.findLast(({ namespace }) => namespace.isOwn)?.mount
      if (last === undefined) return
      mustBeOnTop(last, this.#own.mounts)
      for (const { mount, namespace } of found) {
        if (namespace.isOwn || goesWith(last, mount, this.#namespaces)) continue
        this.metCopies = true
        const where = `${mount.mountPoint} in ${namespaceName(namespace)}`
        throw new ThinfsError('VOLUME_BUSY', `${path} is mounted at ${where}`)
      }
      await this.clearAbove(last)
      mustBeOnTop(last, this.#own.mounts)
      const users = usersWithin(last.mountPoint)
      if (users.length > 0) throw inUse(last.mountPoint, users)
      this.#unmount(last)
    }
  }

  /** As umount --recursive, in all namespaces. */
  #unmount(mount: Mount): void {
    const isBelow = (other: Mount): boolean =>
      other.id === mount.id || isWithin(mount.mountPoint, other.mountPoint)
    for (const namespace of this.#namespaces) {
      namespace.mounts = namespace.mounts.filter(other =>
        namespace.isOwn ? !isBelow(other) : !isCopyOf(mount, other, this.#namespaces),
      )
    }
  }

  /** A loop device that mount(8) has made goes with its mount. */
  #goesByItself(name: string): boolean {
    return read(`/sys/block/${name}/loop/autoclear`) === '1\n' || this.goes.has(`/dev/${name}`)
  }
}

const isCopyOf = (mount: Mount, other: Mount, namespaces: MountNamespace[]): boolean =>
  other.device === mount.device && goesWith(mount, other, namespaces)

/** The processes that use what is in a folder. */
function usersWithin(folder: string): string[] {
  const pids = processesWithin(folder).filter(isInOwnNamespace)
  const swaps = read('/proc/swaps')
    .split('\n')
    .map(line => line.split(/\s/)[0] ?? '')
    .filter(file => isWithin(folder, file))
  return [...pids.map(nameOf), ...swaps.map(file => `${basename(file)} as swap`)]
}

/**
 * Unmounts what is mounted from a loop device, see `unmountFilesystem`, and detaches it.
 * @param label begins the messages
 * @returns where it was mounted
 * @throws VOLUME_BUSY naming who uses it
 */
export async function takeAway(loop: AttachedLoop, label = ''): Promise<string[]> {
  const places = await unmountFilesystem(loop)
  if (isStillAttached(loop)) await detachLoop(loop.path, label)
  // A device that mount(8) has made goes with its mount.
  else forgetDetached(loop.path)
  return places
}

/**
 * Unmounts all that is mounted from a device, its partitions, and what is stacked on them, in this
 * mount namespace; what is frozen is thawed.
 * @returns where it was mounted
 * @throws VOLUME_BUSY naming who uses it
 */
async function unmountFilesystem(device: AttachedLoop): Promise<string[]> {
  const places: string[] = []
  for (;;) {
    const loops = await listLoops()
    if (!isStillAttached(device)) return places
    const own = mountsOn(device.path, loops).filter(({ namespace }) => namespace.isOwn)
    const last = own.at(-1)?.mount
    if (last === undefined) return places
    mustBeOnTop(last)
    // A frozen filesystem would keep unmounts above it waiting for ever. The kernel refuses to thaw
    // one that is not frozen.
    await runTool('fsfreeze', '--unfreeze', '--', last.mountPoint).catch(() => {})
    await clearAbove(last)
    // Somebody may have mounted something over it meanwhile.
    mustBeOnTop(last)
    await unmountOne(last)
    places.push(last.mountPoint)
  }
}

/**
 * An unmount goes by the path, and would take what is mounted over it.
 * @throws VOLUME_BUSY naming that
 */
function mustBeOnTop(mount: Mount, mounts = readMounts()): void {
  const over = mountOver(mount, mounts)
  if (over === null) return
  const what = `${mount.mountPoint}: a ${over.type} is mounted over it`
  throw new ThinfsError('VOLUME_BUSY', `${what}: umount ${over.mountPoint} first`)
}

async function unmountOne({ id, mountPoint }: Mount): Promise<void> {
  try {
    await runTool('umount', '--recursive', '--', mountPoint)
  } catch (err) {
    if (!readMounts().some(mount => mount.id === id)) return
    const users = processesWithin(mountPoint).map(nameOf)
    if (users.length > 0) throw inUse(mountPoint, users, err)
    const why = (err as Error).message
    throw new ThinfsError('VOLUME_BUSY', `${mountPoint}: ${why}`, { cause: err })
  }
}

const inUse = (mountPoint: string, users: readonly string[], cause?: unknown): ThinfsError =>
  new ThinfsError('VOLUME_BUSY', `${mountPoint}: in use by ${users.join(', ')}`, { cause })
