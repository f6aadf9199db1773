import { closeSync, constants, openSync } from 'node:fs'
import { join } from 'node:path'
import { errnoOf, heldPath, ThinfsError } from '../base/index.js'

/**
 * A folder that is held by a descriptor: it stays the same one when somebody moves it, and when
 * another folder takes its old name. Source: proc(5), `/proc/pid/fd`.
 */
export class HeldFolder {
  /** Its path when it was opened; for people. */
  readonly path: string
  readonly fd: number

  private constructor(path: string, fd: number) {
    this.path = path
    this.fd = fd
  }

  /** @throws IO_ERROR */
  static open(path: string): HeldFolder {
    try {
      return new HeldFolder(path, openSync(path, constants.O_RDONLY | constants.O_DIRECTORY))
    } catch (err) {
      const detail = `${path}: ${(err as Error).message}`
      throw new ThinfsError('IO_ERROR', detail, { cause: err, errno: errnoOf(err) })
    }
  }

  /** @param fd that of a folder; it is closed with this */
  static of(fd: number, path: string): HeldFolder {
    return new HeldFolder(path, fd)
  }

  /** The name by which system calls of this process reach it, wherever it is. */
  get held(): string {
    return heldPath(this.fd)
  }

  /** A file in it: the path for people, and the one for system calls. */
  file(name: string): [path: string, held: string] {
    return [join(this.path, name), join(this.held, name)]
  }

  close(): void {
    closeSync(this.fd)
  }
}
