import {
  closeSync,
  constants,
  fsync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  writeSync,
} from 'node:fs'
import { promisify } from 'node:util'
import { syncFolder } from './atomic-file.js'

const fsyncLater = promisify(fsync)

/**
 * A small file that is appended to with plain writes and now and then replaced as a whole.
 *
 * It has to outlive the process, not the machine: nothing is flushed but by `sync`. Who finds it empty
 * after a power cut knows less, nothing wrong.
 */
export class JournalFile {
  readonly path: string
  /** Identifies the running boot of the machine. Source: proc(5), random/boot_id. */
  readonly bootId: string
  #fd: number

  private constructor(path: string, fd: number) {
    this.path = path
    this.#fd = fd
    this.bootId = readFileSync('/proc/sys/kernel/random/boot_id', 'latin1').trim()
  }

  /** Opens `path`, which is no link, made empty with mode 0600 when it is missing. */
  static open(path: string): JournalFile {
    const { O_RDWR, O_APPEND, O_CREAT, O_NOFOLLOW } = constants
    return new JournalFile(path, openSync(path, O_RDWR | O_APPEND | O_CREAT | O_NOFOLLOW, 0o600))
  }

  readAll(): Buffer {
    return readFileSync(this.path)
  }

  append(bytes: Uint8Array, length: number): void {
    for (let done = 0; done < length; ) done += writeSync(this.#fd, bytes, done, length - done)
  }

  replace(bytes: Uint8Array): void {
    const next = `${this.path}.new`
    rmSync(next, { force: true })
    const fd = openSync(next, 'wx', 0o600)
    try {
      for (let done = 0; done < bytes.length; ) done += writeSync(fd, bytes, done)
      renameSync(next, this.path)
    } catch (err) {
      closeSync(fd)
      throw err
    }
    closeSync(this.#fd)
    this.#fd = fd
  }

  /** fsync of the file and its folder: resolves when a power cut leaves this content. */
  async sync(): Promise<void> {
    await fsyncLater(this.#fd)
    await syncFolder(this.path)
  }

  close(): void {
    closeSync(this.#fd)
  }
}
