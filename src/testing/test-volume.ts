/** A volume of an ephemeral pool, and what is attached to it and mounted from it. */
import { mkdir, open } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { ThinfsError, volumeMissing } from '../base/index.js'
import {
  attachLoop,
  detachLoop,
  listLoops,
  mountsOn,
  reattachLoop,
  runTool,
  whileFrozen,
} from '../host/index.js'
import type { PoolAdmin, VolumeInfo } from '../volumes/index.js'
import { fromCache } from './cache.js'
import { mountDevice, mountFile, unmountFilesystem } from './filesystem.js'
import type { Layout } from './layout.js'

/** The pool that a volume is of. */
export interface VolumesOfPool {
  readonly admin: PoolAdmin
  volume(name: string): TestVolume
}

/** How long a server of a mount may take to close the volume once it is unmounted. */
const CLOSE_MS = 10_000
const LOOK_MS = 10

/** The filesystem that is mounted from a volume. */
interface Mounted {
  folder: string
  by: 'loop' | 'fuse2fs'
}

export class TestVolume {
  readonly name: string
  /** Its file in the mount: a disk image to every program. */
  readonly path: string
  readonly #pool: VolumesOfPool
  readonly #layout: Layout
  #device: string | null = null
  /** Whether `attach` was called, and not only `mount`. */
  #isAttached = false
  #mounted: Mounted | null = null
  #base: TestVolume | null = null
  #snapshots = 0
  #underWay: Promise<unknown> = Promise.resolve()

  /** A pool's `volume` and `create` make it. */
  constructor(pool: VolumesOfPool, layout: Layout, name: string) {
    this.name = name
    this.path = join(layout.mountPoint, name)
    this.#pool = pool
    this.#layout = layout
  }

  /**
   * Size, bytes mapped, origin, and whether it is open.
   * @throws VOLUME_MISSING
   */
  async info(): Promise<VolumeInfo> {
    const found = (await this.#pool.admin.list()).find(({ name }) => name === this.name)
    if (found !== undefined) return found
    throw volumeMissing(this.name)
  }

  /**
   * Makes a writable snapshot, at once, whatever the size. A filesystem that is mounted is frozen
   * meanwhile, one that fuse2fs has is unmounted for the moment.
   * @param name of the snapshot; default: the volume's with a number, as db@1
   * @throws VOLUME_EXISTS, BAD_NAME, VOLUME_MISSING; MOUNT_BUSY by whoever uses what fuse2fs has
   *   mounted
   */
  snapshot(name = this.#nextName()): Promise<TestVolume> {
    return this.#alone(async () => {
      await this.info()
      const take = async (): Promise<void> => {
        await this.#pool.admin.snapshot({ origin: this.name, name })
      }
      await flush(this.#device ?? this.path)
      if (this.#mounted?.by === 'fuse2fs') await this.#apart(take)
      else await whileAllFrozen(this.#device === null ? [] : await foldersOn(this.#device), take)
      this.#base = this.#pool.volume(name)
      return this.#base
    })
  }

  /**
   * Gives the volume the content of a snapshot, which stays as it is: the volume is replaced by a
   * new snapshot of that one. A mount is unmounted and mounted again at the same folder; a loop
   * device is detached and attached again, with the same number. Of an empty snapshot what is
   * mounted then is a new ext4.
   * @param to default: the snapshot of this volume that was made last
   * @throws MOUNT_BUSY, VOLUME_BUSY naming who uses the volume, which then is as it was;
   *   VOLUME_MISSING, BAD_ARGUMENT without a snapshot
   */
  async rollback(to: TestVolume | null = this.#base): Promise<void> {
    if (to === null) {
      throw new ThinfsError('BAD_ARGUMENT', `${this.name}: no snapshot was made of it`)
    }
    const request = { name: this.name, snapshot: to.name }
    const replace = async (): Promise<void> => void (await this.#pool.admin.rollback(request))
    await this.#alone(() => this.#apart(replace))
  }

  /**
   * A loop device on the volume, with direct I/O; the same one until `detach`.
   * @returns such as `/dev/loop0`
   * @throws NOT_SUPPORTED without root or loop devices, saying what there is instead; TOOL_FAILED,
   *   VOLUME_MISSING
   */
  attach(): Promise<string> {
    return this.#alone(async () => {
      await this.info()
      this.#device ??= (await attachLoop(this.path)).device
      this.#isAttached = true
      return this.#device
    })
  }

  /**
   * Takes the loop device away.
   * @throws VOLUME_BUSY naming who uses it
   */
  detach(): Promise<void> {
    return this.#alone(async () => {
      if (this.#mounted === null) await this.#detach()
      this.#isAttached = false
    })
  }

  async #detach(): Promise<void> {
    if (this.#device === null) return
    await detachLoop(this.#device)
    this.#device = null
  }

  /**
   * Mounts the filesystem on the volume, from a loop device where there may be one, else by
   * fuse2fs, which knows ext2, ext3 and ext4. On a volume that holds nothing an ext4 is made first.
   * @returns the folder where it is, the same each time
   * @throws TOOL_FAILED with what mount or fuse2fs say; VOLUME_MISSING
   */
  mount(): Promise<string> {
    return this.#alone(async () => {
      if (this.#mounted !== null) return this.#mounted.folder
      const folder = join(this.#layout.filesystems, this.name)
      await this.#mount(folder)
      return folder
    })
  }

  async #mount(folder: string): Promise<void> {
    const { mapped } = await this.info()
    // By way of the device where there is one: that has pages of its own.
    if (mapped === 0) await runTool('mkfs.ext4', '-q', '-F', this.#device ?? this.path)
    await mkdir(folder, { recursive: true })
    try {
      this.#device ??= (await attachLoop(this.path)).device
    } catch (err) {
      const why = (err as Error).message
      await mountFile(this.path, folder).catch(also => {
        throw new ThinfsError('TOOL_FAILED', `${also.message}; ${why}`, { cause: also })
      })
      this.#mounted = { folder, by: 'fuse2fs' }
      return
    }
    try {
      await mountDevice(this.#device, folder)
    } catch (err) {
      if (!this.#isAttached) await this.#detach()
      throw err
    }
    this.#mounted = { folder, by: 'loop' }
  }

  /**
   * Unmounts what `mount` has mounted, and takes its loop device away.
   * @throws MOUNT_BUSY naming who uses it
   */
  umount(): Promise<void> {
    return this.#alone(async () => {
      await this.#umount()
      if (!this.#isAttached) await this.#detach()
    })
  }

  async #umount(): Promise<void> {
    if (this.#mounted === null) return
    await unmountFilesystem(this.#mounted.folder)
    if (this.#mounted.by === 'fuse2fs') await this.#closed()
    this.#mounted = null
  }

  /** fuse2fs writes the rest when its mount has gone. */
  async #closed(): Promise<void> {
    const deadline = Date.now() + CLOSE_MS
    while ((await this.info()).open && Date.now() < deadline) await sleep(LOOK_MS)
  }

  /** Calls `act` while nothing is mounted from the volume, and nothing attached to it. */
  async #apart(act: () => Promise<void>): Promise<void> {
    const [device, mounted] = [this.#device, this.#mounted]
    await this.#umount()
    try {
      await this.#detach()
      await act()
    } finally {
      // For a mount any other device will do.
      if (device !== null && this.#device === null && this.#isAttached) {
        await reattachLoop(this.path, device)
        this.#device = device
      }
      if (mounted !== null) await this.#mount(mounted.folder)
    }
  }

  /**
   * Gives an empty volume its content: `make` fills it, the first time; from then on it comes from
   * the user's cache, also in later runs, and in other processes, which wait for the first one.
   * Afterwards nothing is mounted or attached.
   * @param key names the content: whenever `make` would give another one, it has to change
   * @param make writes to `volume.path`, or to what it has mounted
   * @returns a snapshot, to which `rollback` goes back
   * @throws HAS_DATA for a volume that is not empty; NOT_TRUSTED for a cache that others may write
   *   to; what `make` throws, and nothing is kept
   */
  async fill(key: string, make: (volume: TestVolume) => unknown): Promise<TestVolume> {
    const { mapped, size } = await this.info()
    if (mapped > 0) {
      throw new ThinfsError('HAS_DATA', `${this.name}: only an empty volume can be filled`)
    }
    const letGo = async (): Promise<void> => {
      await this.umount()
      await this.detach()
    }
    await letGo()
    await fromCache(JSON.stringify([key, size]), this.path, async () => {
      await make(this)
      await letGo()
    })
    return await this.snapshot()
  }

  /** Operations on the volume happen one after the other, whoever asks for them when. */
  #alone<T>(act: () => Promise<T>): Promise<T> {
    const done = this.#underWay.then(act)
    this.#underWay = done.catch(() => {})
    return done
  }

  #nextName(): string {
    this.#snapshots++
    return `${this.name}@${this.#snapshots}`
  }
}

/** Makes what was written to a file or device known to whoever reads what is below it. */
async function flush(path: string): Promise<void> {
  const file = await open(path)
  try {
    await file.sync()
  } finally {
    await file.close()
  }
}

/** A folder of each filesystem that is mounted from a loop device. */
async function foldersOn(device: string): Promise<string[]> {
  const mounts = mountsOn(device, await listLoops()).filter(({ namespace }) => namespace.isOwn)
  const folders = new Map(mounts.map(({ mount }) => [mount.device, mount.mountPoint]))
  return [...folders.values()]
}

function whileAllFrozen(folders: readonly string[], act: () => Promise<void>): Promise<void> {
  const [folder, ...rest] = folders
  return folder === undefined ? act() : whileFrozen(folder, () => whileAllFrozen(rest, act))
}
