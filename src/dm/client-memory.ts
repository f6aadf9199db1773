/**
 * Looking into the thread that waits for an answer: what it is doing, and the memory that it points
 * to.
 *
 * A thread stays as long as its request is not answered, so its number stays its own. Needs the
 * right to trace it, which root has. Source: proc_pid_syscall(5), proc_pid_mem(5).
 */
import { close, openSync, read, readFileSync, write } from 'node:fs'
import { setTimeout } from 'node:timers/promises'
import { promisify } from 'node:util'
import { type Later, refused } from '../base/index.js'

/**
 * System calls that open a file: open, creat, openat, openat2. Of a 32-bit program on x86-64: open
 * 5, openat 295, which in a 64-bit one never look a name up.
 */
const OPENING: Readonly<Record<string, readonly string[]>> = {
  x64: ['2', '85', '257', '437', '5', '295'],
  arm64: ['56', '437'],
}
const readBytes = promisify(read)
const writeBytes = promisify(write)
/** A thread goes to sleep within microseconds of its request. */
const TRIES_AT_ONCE = 20
const TRIES_LATER = 200

/** Whether there is a way to tell on this machine; if not, why. */
export function whyNotTold(): string | null {
  if (OPENING[process.arch] === undefined) return `thinfs dm does not know ${process.arch} as yet`
  try {
    readFileSync(`/proc/${process.ppid}/syscall`)
    return null
  } catch (err) {
    return `/proc/PID/syscall cannot be read: ${(err as Error).message}`
  }
}

/** Whether the thread `tid`, whose lookup waits for us, is about to open the file. */
export function isOpening(tid: number): Later<boolean> {
  for (let i = 0; i < TRIES_AT_ONCE; i++) {
    const known = look(tid)
    if (known !== null) return known
  }
  return isOpeningLater(tid)
}

async function isOpeningLater(tid: number): Promise<boolean> {
  for (let i = 0; i < TRIES_LATER; i++) {
    await setTimeout(1)
    const known = look(tid)
    if (known !== null) return known
  }
  return false
}

/** Null: it still runs, and nothing can be said. */
function look(tid: number): boolean | null {
  try {
    const [word] = readFileSync(`/proc/${tid}/syscall`, 'latin1').split(/\s/, 1)
    return word === 'running' ? null : OPENING[process.arch]!.includes(word!)
  } catch {
    return false
  }
}

/**
 * The memory of a thread that waits. Opening and closing it waits for nobody; to touch it may, for
 * what is mapped there.
 */
export class ClientMemory {
  readonly #tid: number
  #fd = -1

  constructor(tid: number) {
    this.#tid = tid
  }

  /** @throws BAD_ARGUMENT, EFAULT, when it has not so many bytes there */
  async read(address: number, length: number): Promise<Buffer> {
    const bytes = Buffer.alloc(length)
    const { bytesRead } = await this.#do(fd => readBytes(fd, bytes, 0, length, address))
    if (bytesRead !== length) throw refused('EFAULT', `${length} bytes cannot be read`)
    return bytes
  }

  /** @throws BAD_ARGUMENT, EFAULT, when not all could be written */
  async write(address: number, bytes: Buffer): Promise<void> {
    const { bytesWritten } = await this.#do(fd => writeBytes(fd, bytes, 0, bytes.length, address))
    if (bytesWritten !== bytes.length) throw refused('EFAULT', 'the answer cannot be written')
  }

  close(): void {
    if (this.#fd >= 0) close(this.#fd)
    this.#fd = -1
  }

  async #do<T>(act: (fd: number) => Promise<T>): Promise<T> {
    try {
      if (this.#fd < 0) this.#fd = openSync(`/proc/${this.#tid}/mem`, 'r+')
      return await act(this.#fd)
    } catch (err) {
      throw refused('EFAULT', `memory of thread ${this.#tid}: ${(err as Error).message}`)
    }
  }
}
