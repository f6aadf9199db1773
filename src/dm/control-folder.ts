/**
 * /dev/mapper: a node for each device, and `control`.
 *
 * `control` is a character device for whoever looks at it, as libdevmapper wants it, and a regular
 * file for whoever opens it: the kernel passes an ioctl on a regular file to us, and has no driver
 * for the device. Two inodes, and which of them a lookup finds is a matter of the system call that
 * it is for. The kernel asks anew each time, for nothing here may be cached.
 */
import { constants } from 'node:fs'
import { errnoOf, type Later, refused } from '../base/index.js'
import type {
  AttributeChange,
  Attributes,
  DirectoryEntry,
  FileSystem,
  FileSystemStatistics,
  IoctlAnswer,
  IoctlRequest,
} from '../fuse/index.js'
import { DM_IOCTL, DM_IOCTL_TYPE, encodeDevice } from './abi.js'
import { ClientMemory, isOpening } from './client-memory.js'
import type { Device, DeviceTable } from './device-table.js'
import type { Ioctls } from './ioctls.js'

const ROOT = 1
const CONTROL_NODE = 2
const CONTROL_FILE = 3
/** Inodes of what others make in the folder begin here, those of devices at the next. */
const FIRST_OTHER = 16
const FIRST_DEVICE = 2 ** 32
const { S_IFBLK, S_IFCHR, S_IFDIR, S_IFLNK, S_IFMT, S_IFREG } = constants
/** The number of device-mapper's control node since Linux 2.6.36. */
const CONTROL_NUMBER = { major: 10, minor: 236 }
const MAX_OTHERS = 4096

/** The attributes of a node that can be changed. */
interface Ownership {
  mode: number
  uid: number
  gid: number
}

/** A node or link that somebody made: kept, and means nothing. */
interface Other extends Ownership {
  ino: number
  rdev: number
  target: string
}

export interface ControlFolderOptions {
  table: DeviceTable
  ioctls: Ioctls
  /** The time that the folder's files show, in seconds. */
  since: number
  /** `control` is being opened. */
  onOpen(): void
  onRefused(command: string, err: unknown): void
}

export class ControlFolder implements FileSystem {
  readonly #options: ControlFolderOptions
  readonly #others = new Map<string, Other>()
  readonly #ownership = new WeakMap<Device, Ownership>()
  #lastIno = FIRST_OTHER
  readonly directIo = true
  readonly unsettled = false

  constructor(options: ControlFolderOptions) {
    this.#options = options
  }

  async ioctl(ino: number, request: IoctlRequest): Promise<IoctlAnswer> {
    try {
      return await this.#ioctl(ino, request)
    } catch (err) {
      // Terminals and tapes are asked for that have other ioctls.
      if (errnoOf(err) !== 'ENOTTY') this.#options.onRefused('ioctl', err)
      throw err
    }
  }

  async #ioctl(ino: number, request: IoctlRequest): Promise<IoctlAnswer> {
    const { command, argument, input, outputSize, caller, signal } = request
    const isOurs = ino === CONTROL_FILE && ((command >>> 8) & 0xff) === DM_IOCTL_TYPE
    if (!isOurs) throw refused('ENOTTY', 'no ioctl of device-mapper')
    if (caller.uid !== 0) throw refused('EACCES', 'only root is answered')
    const { size } = DM_IOCTL
    if (input.length !== size || outputSize !== size || caller.pid === 0) {
      throw refused('EINVAL', 'not the ioctl of a process of ours')
    }
    const memory = new ClientMemory(caller.pid)
    try {
      const { errno, header, payload } = await this.#options.ioctls.call(
        command & 0xff,
        input,
        {
          pid: caller.pid,
          ...{ signal, isResent: request.isResent },
          readBehind: length => memory.read(argument + size, length),
        },
        (name, err) => this.#options.onRefused(name, err),
      )
      if (payload !== null) await memory.write(argument + size, payload)
      return { errno, output: header }
    } finally {
      memory.close()
    }
  }

  lookup(parent: number, name: string, pid: number): Later<Attributes> {
    if (parent !== ROOT) throw refused('ENOTDIR', name)
    if (name === 'control') {
      const opens = isOpening(pid)
      return opens instanceof Promise ? opens.then(is => this.#control(is)) : this.#control(opens)
    }
    return this.#named(name)
  }

  getattr(ino: number): Attributes {
    if (ino === ROOT) return this.#attributes(ROOT, { ...ROOT_OWNED, mode: S_IFDIR | 0o755 })
    if (ino === CONTROL_NODE) return this.#control(false)
    if (ino === CONTROL_FILE) return this.#control(true)
    if (ino >= FIRST_DEVICE) {
      const device = this.#options.table.get(ino - FIRST_DEVICE)
      if (device !== undefined) return this.#ofDevice(device)
    }
    for (const other of this.#others.values()) if (other.ino === ino) return this.#ofOther(other)
    throw refused('ENOENT', `inode ${ino}`)
  }

  setattr(ino: number, { mode, uid, gid }: AttributeChange): Attributes {
    const now = this.getattr(ino)
    if (ino < FIRST_OTHER) return now
    const changed: Ownership = {
      mode: mode === undefined ? now.mode : (now.mode & S_IFMT) | (mode & 0o7777),
      uid: uid ?? now.uid,
      gid: gid ?? now.gid,
    }
    const device = this.#options.table.get(ino - FIRST_DEVICE)
    if (device !== undefined) this.#ownership.set(device, changed)
    for (const other of this.#others.values()) if (other.ino === ino) Object.assign(other, changed)
    return this.getattr(ino)
  }

  readdir(): DirectoryEntry[] {
    const devices = this.#options.table.all().filter(({ ready }) => ready)
    const names = new Set(['control', ...devices.map(({ name }) => name), ...this.#others.keys()])
    return [...names].map(name => ({
      name,
      attributes: name === 'control' ? this.#control(false) : this.#named(name),
    }))
  }

  mknod(parent: number, name: string, mode: number, rdev: number): Attributes {
    return this.#add(parent, name, { mode, rdev, target: '' })
  }

  symlink(parent: number, name: string, target: string): Attributes {
    return this.#add(parent, name, { mode: S_IFLNK | 0o777, rdev: 0, target })
  }

  readlink(ino: number): string {
    for (const other of this.#others.values()) {
      if (other.ino === ino && (other.mode & S_IFMT) === S_IFLNK) return other.target
    }
    throw refused('EINVAL', `inode ${ino} is no link`)
  }

  create(): never {
    throw refused('EPERM', 'regular files cannot be made here')
  }

  /** Nodes of devices come and go with them: libdevmapper may believe that it removes them. */
  unlink(_parent: number, name: string): void {
    if (name === 'control') throw refused('EBUSY', 'control stays')
    if (!this.#others.delete(name)) this.#named(name)
  }

  rename(_parent: number, name: string, _newParent: number, newName: string): void {
    if (name === 'control' || newName === 'control') throw refused('EBUSY', 'control stays')
    const other = this.#others.get(name)
    if (other === undefined) {
      this.#named(name)
      return
    }
    this.#others.delete(name)
    this.#others.set(newName, other)
  }

  open(ino: number): void {
    if (ino !== CONTROL_FILE) throw refused('ENXIO', `inode ${ino} cannot be opened`)
    this.#options.onOpen()
  }

  release(): void {}
  read(): never {
    throw refused('EINVAL', 'control cannot be read')
  }
  readLater(): never {
    throw refused('EINVAL', 'control cannot be read')
  }
  write(): never {
    throw refused('EINVAL', 'control cannot be written')
  }
  fallocate(): never {
    throw refused('EOPNOTSUPP', 'nothing has space here')
  }
  lseek(): never {
    throw refused('EINVAL', 'control cannot be read')
  }
  copyFileRange(): never {
    throw refused('EINVAL', 'control cannot be read')
  }
  fsync(): void {}
  flush(): void {}
  syncfs(): void {}
  getxattr(): never {
    throw refused('ENOSYS', 'no attributes')
  }
  listxattr(): string[] {
    return []
  }
  settle(): void {}

  statfs(): FileSystemStatistics {
    return {
      ...{ blockSize: 4096, blocks: 0, blocksFree: 0, blocksAvailable: 0 },
      ...{ files: this.#options.table.all().length + 2, filesFree: 0, nameMax: 255 },
    }
  }

  /** The file type of `control`: one for the process that opens it, another for all others. */
  #control(opens: boolean): Attributes {
    if (opens) return this.#attributes(CONTROL_FILE, { ...ROOT_OWNED, mode: S_IFREG | 0o600 })
    const node = this.#attributes(CONTROL_NODE, { ...ROOT_OWNED, mode: S_IFCHR | 0o600 })
    return { ...node, rdev: encodeDevice(CONTROL_NUMBER) }
  }

  #named(name: string): Attributes {
    const device = this.#options.table.byName(name)
    if (device?.ready) return this.#ofDevice(device)
    const other = this.#others.get(name)
    if (other !== undefined) return this.#ofOther(other)
    throw refused('ENOENT', name)
  }

  #add(
    parent: number,
    name: string,
    { mode, rdev, target }: Pick<Other, 'mode' | 'rdev' | 'target'>,
  ): Attributes {
    const isTaken = name === 'control' || this.#others.has(name)
    if (isTaken || this.#options.table.byName(name)?.ready) throw refused('EEXIST', name)
    if (parent !== ROOT) throw refused('ENOTDIR', name)
    if (this.#others.size >= MAX_OTHERS) throw refused('ENOSPC', name)
    const other = { ino: ++this.#lastIno, ...ROOT_OWNED, mode, rdev, target }
    this.#others.set(name, other)
    return this.#ofOther(other)
  }

  #ofDevice(device: Device): Attributes {
    const owned = this.#ownership.get(device) ?? { ...ROOT_OWNED, mode: S_IFBLK | 0o600 }
    const rdev = encodeDevice(device.number)
    return { ...this.#attributes(FIRST_DEVICE + device.minor, owned), rdev }
  }

  #ofOther(other: Other): Attributes {
    const size = other.target.length
    return { ...this.#attributes(other.ino, other), size, rdev: other.rdev }
  }

  #attributes(ino: number, { mode, uid, gid }: Ownership): Attributes {
    const { since } = this.#options
    return {
      ...{ ino, generation: 0, size: 0, blocks: 0, mode, nlink: 1, uid, gid },
      ...{ atime: since, mtime: since, ctime: since, blockSize: 4096 },
    }
  }
}

const ROOT_OWNED = { uid: 0, gid: 0 }
