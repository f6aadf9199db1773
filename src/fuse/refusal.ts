import { constants } from 'node:os'
import { MAX_IO } from '../base/index.js'
import { IN_HEADER, INTERRUPT_IN, OPCODE, OUT_HEADER } from './abi.js'
import { type FuseDevice, KernelDevice } from './device.js'
import { requestResend } from './resend.js'
import { Slots } from './slots.js'

const NOT_ANSWERED: ReadonlySet<number> = new Set([
  OPCODE.FORGET,
  OPCODE.BATCH_FORGET,
  OPCODE.INTERRUPT,
  OPCODE.NOTIFY_REPLY,
])

/**
 * Answers every request of an initialised connection with EIO when no engine can serve it, so that
 * callers do not wait for ever. These include requests that a dead engine had read.
 */
export class Refusal {
  readonly #device: FuseDevice
  readonly #slots = new Slots(MAX_IO + 4096, 1)
  readonly #place = new Uint32Array(1)
  readonly #length = new Uint32Array(1)
  readonly #onUnmounted: () => void
  readonly #onInterrupt: (slots: Slots, at: number) => void

  /**
   * @param fd of /dev/fuse, non-blocking; the caller's to close after `close`
   * @param onUnmounted called once, when nothing can come any more
   * @param onInterrupt told where the `unique` of a request is that somebody else may have
   */
  constructor(
    fd: number,
    onUnmounted: () => void,
    onInterrupt: (slots: Slots, at: number) => void = () => {},
  ) {
    this.#onUnmounted = onUnmounted
    this.#onInterrupt = onInterrupt
    this.#device = new KernelDevice(fd)
    requestResend(this.#device)
    this.#device.watch(() => this.#drain())
  }

  close(): void {
    this.#device.unwatch()
  }

  #drain(): void {
    for (;;) {
      const count = this.#device.read(this.#slots, 1, this.#place, this.#length, 0)
      if (count === 0) return
      if (count < 0) {
        this.close()
        this.#onUnmounted()
        return
      }
      const opcode = this.#slots.u32(IN_HEADER.at.opcode)
      if (opcode === OPCODE.INTERRUPT) {
        this.#onInterrupt(this.#slots, this.#slots.body + INTERRUPT_IN.at.unique)
      }
      if (NOT_ANSWERED.has(opcode)) continue
      this.#slots.setU32(OUT_HEADER.at.len, OUT_HEADER.size)
      this.#slots.setU32(OUT_HEADER.at.error, -constants.errno.EIO)
      // Ignore failures: the caller may have been killed meanwhile.
      this.#device.write(this.#slots.buffer, 0, OUT_HEADER.size)
    }
  }
}
