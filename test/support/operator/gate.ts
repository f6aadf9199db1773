/** Who may act: all beside each other, or one alone. */
export class Gate {
  #inside = 0
  #locked = false
  #waiting: (() => void)[] = []

  /** Runs what others may run beside. */
  async shared(work: () => Promise<void>): Promise<void> {
    await this.#until(() => {
      if (this.#locked) return false
      this.#inside++
      return true
    })
    try {
      await work()
    } finally {
      this.#inside--
      this.#wake()
    }
  }

  /** Runs what nobody else may begin anything beside; who is inside goes on. */
  async locked(work: () => Promise<void>): Promise<void> {
    await this.#until(() => {
      if (this.#locked) return false
      this.#locked = true
      return true
    })
    try {
      await work()
    } finally {
      this.#locked = false
      this.#wake()
    }
  }

  /** Until nobody is inside any more. */
  empty(): Promise<void> {
    return this.#until(() => this.#inside === 0)
  }

  /** @param condition takes what it waits for, so that nobody else does in between */
  async #until(condition: () => boolean): Promise<void> {
    while (!condition()) await new Promise<void>(resolve => this.#waiting.push(resolve))
  }

  #wake(): void {
    for (const resolve of this.#waiting.splice(0)) resolve()
  }
}
