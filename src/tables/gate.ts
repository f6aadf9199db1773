import { ThinfsError } from '../base/index.js'

/** Milliseconds between looks of `drain` at the requests it need not wait for. */
const LOOK_AGAIN = 20

/**
 * Requests pass it. While it is shut new requests wait, and the caller that shut it waits for those
 * in flight. At most as many wait as the kernel has requests under way for a mount.
 */
export class Gate {
  #underWay = 0
  #isShut = false
  #opened: Promise<void> = Promise.resolve()
  #open: () => void = () => {}
  #refuse: (err: Error) => void = () => {}
  #onEnd: (() => void) | null = null

  get isShut(): boolean {
    return this.#isShut
  }

  /** Counts a request as under way until `request` has ended. @returns `request` */
  track<T>(request: Promise<T>): Promise<T> {
    this.#underWay++
    const ended = (): void => {
      this.#underWay--
      this.#onEnd?.()
    }
    request.then(ended, ended)
    return request
  }

  /** Resolves when the gate is open. @throws IO_ERROR when the device behind it has gone */
  async pass(): Promise<void> {
    while (this.#isShut) await this.#opened
  }

  shut(): void {
    if (this.#isShut) return
    this.#isShut = true
    this.#opened = new Promise((resolve, reject) => {
      this.#open = resolve
      this.#refuse = reject
    })
    this.#opened.catch(() => {}) // nobody may wait
  }

  open(): void {
    this.#isShut = false
    this.#open()
  }

  /** Fails the requests that wait, and all that follow. */
  refuse(): void {
    this.shut()
    this.#refuse(new ThinfsError('IO_ERROR', 'the device was removed'))
  }

  /** Resolves when no more requests are under way than `exempt` says. One caller at a time. */
  async drain(exempt: () => number): Promise<void> {
    while (this.#underWay > exempt()) {
      let timer: NodeJS.Timeout | undefined
      await new Promise<void>(resolve => {
        this.#onEnd = resolve
        timer = setTimeout(resolve, LOOK_AGAIN)
      })
      clearTimeout(timer)
      this.#onEnd = null
    }
  }
}
