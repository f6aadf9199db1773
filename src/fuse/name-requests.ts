/**
 * Requests about names and attributes: what is in the folder, and of whom.
 *
 * A request that comes again was sent to an earlier process, which may have carried it out before
 * it died: then what it wanted to make is there, and what it wanted to take away is not.
 */
import { constants } from 'node:os'
import { type Later, MAX_IO, type Requester, ThinfsError } from '../base/index.js'
import {
  CREATE_IN,
  FATTR,
  GETXATTR_IN,
  GETXATTR_OUT,
  MKNOD_IN,
  OPCODE,
  READ_IN,
  RELEASE_IN,
  RENAME_IN,
  RENAME2_IN,
  SETATTR_IN,
} from './abi.js'
import { DirectoryStreams } from './directory.js'
import {
  type Encode,
  encodeAttributes,
  encodeCreate,
  encodeEntry,
  encodeLink,
  encodeNothing,
  encodeOpendir,
} from './encode.js'
import type { AttributeChange, Attributes, FileSystem } from './file-system.js'
import { later, orElse } from './later.js'
import type { Request } from './request.js'
import type { Slots } from './slots.js'

const { EINVAL, EPERM } = constants.errno

const S_IFMT = 0o170000
const S_IFREG = 0o100000

export class NameRequests {
  readonly #fs: FileSystem
  readonly #directories: DirectoryStreams
  readonly #requester: Requester

  /** @param requester of the request at hand */
  constructor(fileSystem: FileSystem, requester: Requester) {
    this.#fs = fileSystem
    this.#requester = requester
    this.#directories = new DirectoryStreams(fileSystem)
  }

  /** @returns false for a request that is about something else */
  handle(request: Request): boolean {
    const fs = this.#fs
    const { opcode, ino, slots } = request
    switch (opcode) {
      case OPCODE.LOOKUP:
        request.answer(fs.lookup(ino, request.name, request.caller.pid), encodeEntry)
        return true
      case OPCODE.GETATTR:
        request.answer(fs.getattr(ino), encodeAttributes)
        return true
      case OPCODE.SETATTR:
        request.answer(
          fs.setattr(ino, attributeChange(slots, request.at), this.#requester),
          encodeAttributes,
        )
        return true
      case OPCODE.CREATE: {
        const flags = request.u32(CREATE_IN.at.flags)
        const mode = request.u32(CREATE_IN.at.mode)
        const fh = request.number
        const created = later(this.#create(request, request.name, mode), attributes =>
          later(fs.open(attributes.ino, flags, fh), () => ({ attributes, fh })),
        )
        request.answer(created, encodeCreate)
        return true
      }
      case OPCODE.MKNOD: {
        const mode = request.u32(MKNOD_IN.at.mode)
        const { name } = request
        if ((mode & S_IFMT) === S_IFREG) {
          request.answer(this.#create(request, name, mode), encodeEntry)
        } else if (fs.mknod === undefined) request.refuse(EPERM)
        else request.answer(fs.mknod(ino, name, mode, request.u32(MKNOD_IN.at.rdev)), encodeEntry)
        return true
      }
      case OPCODE.SYMLINK: {
        if (fs.symlink === undefined) request.refuse(EPERM)
        else {
          const [name, target] = request.names(2) as [string, string]
          request.answer(fs.symlink(ino, name, target), encodeEntry)
        }
        return true
      }
      case OPCODE.READLINK:
        if (fs.readlink === undefined) request.refuse(EINVAL)
        else request.answer(fs.readlink(ino), encodeLink)
        return true
      case OPCODE.UNLINK: {
        const { name } = request
        const removed = onceAgain(request, () => fs.unlink(ino, name))
        request.answer(removed, encodeNothing)
        return true
      }
      case OPCODE.RENAME:
      case OPCODE.RENAME2: {
        const newParent = request.u64(RENAME_IN.at.newdir)
        const flags = opcode === OPCODE.RENAME2 ? request.u32(RENAME2_IN.at.flags) : 0
        const [name, newName] = request.names(2) as [string, string]
        const { number } = request
        const renamed = onceAgain(request, () =>
          fs.rename(ino, name, newParent, newName, flags, number),
        )
        request.answer(renamed, encodeNothing)
        return true
      }
      case OPCODE.OPENDIR:
        request.answer(this.#directories.open(), encodeOpendir)
        return true
      case OPCODE.READDIR:
      case OPCODE.READDIRPLUS:
        this.#list(request)
        return true
      case OPCODE.RELEASEDIR:
        this.#directories.close(request.u64(RELEASE_IN.at.fh))
        request.reply(0)
        return true
      case OPCODE.GETXATTR: {
        const value = fs.getxattr(ino, request.name)
        request.answer(value, xattrEncoder(request.u32(GETXATTR_IN.at.size)))
        return true
      }
      case OPCODE.LISTXATTR: {
        const size = request.u32(GETXATTR_IN.at.size)
        const list = later(fs.listxattr(ino), all => Buffer.from(all.map(n => `${n}\0`).join('')))
        request.answer(list, xattrEncoder(size))
        return true
      }
      default:
        return false
    }
  }

  /** Creates a file; a request that was sent before may have done it already. */
  #create(request: Request, name: string, mode: number): Later<Attributes> {
    const { caller, ino } = request
    const create = (): Later<Attributes> => this.#fs.create(ino, name, mode, caller)
    if (!request.isResent) return create()
    return orElse(create, 'EEXIST', () => this.#fs.lookup(ino, name, caller.pid))
  }

  #list(request: Request): void {
    const { fh, offset: cookie, size } = READ_IN.read(request.slots.view, request.at)
    if (size > MAX_IO) {
      request.refuse(EINVAL)
      return
    }
    const page = { cookie, size, plus: request.opcode === OPCODE.READDIRPLUS }
    request.answer(this.#directories.names(request.ino, fh, cookie), (to, place, entries) =>
      this.#directories.encode(to, place, entries, page),
    )
  }
}

/** Takes a name away; a request that was sent before may have done it already. */
function onceAgain(request: Request, remove: () => Later<void>): Later<void> {
  return request.isResent ? orElse(remove, 'ENOENT', () => {}) : remove()
}

function attributeChange(slots: Slots, at: number): AttributeChange {
  const request = SETATTR_IN.read(slots.view, at)
  const { valid } = request
  const change: AttributeChange = {}
  if (valid & FATTR.SIZE) change.size = request.size
  if (valid & FATTR.MODE) change.mode = request.mode
  if (valid & FATTR.UID) change.uid = request.uid
  if (valid & FATTR.GID) change.gid = request.gid
  if (valid & FATTR.ATIME_NOW) change.atime = 'now'
  else if (valid & FATTR.ATIME)
    change.atime = time(slots, at + SETATTR_IN.at.atime, request.atimensec)
  if (valid & FATTR.MTIME_NOW) change.mtime = 'now'
  else if (valid & FATTR.MTIME)
    change.mtime = time(slots, at + SETATTR_IN.at.mtime, request.mtimensec)
  return change
}

/** Seconds of the signed 64 bits at byte `at` and nanoseconds. */
function time(slots: Slots, at: number, nanoseconds: number): number {
  return Number(slots.view.getBigInt64(at, true)) + nanoseconds / 1e9
}

/** @param size bytes that the caller has room for; 0 asks how many it takes */
function xattrEncoder(size: number): Encode<Buffer> {
  return (slots, base, value) => {
    const at = base + slots.payload
    if (size === 0) {
      GETXATTR_OUT.write(slots.view, at, { size: value.length, padding: 0 })
      return GETXATTR_OUT.size
    }
    if (value.length > size) {
      const found = `an attribute of ${value.length} bytes for ${size}`
      throw new ThinfsError('BAD_ARGUMENT', found, { errno: 'ERANGE' })
    }
    return value.copy(slots.buffer, at)
  }
}
