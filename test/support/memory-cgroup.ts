/** A memory cgroup of our own, of whichever version the machine has its memory controller in. */
import { existsSync, mkdirSync, readFileSync, rmdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Test } from 'tap'

const ROOT = '/sys/fs/cgroup'

export class MemoryCgroup {
  readonly folder: string
  /** Bytes. */
  readonly limit: number
  readonly #version: 1 | 2

  /** @param limit bytes, page cache included */
  constructor(t: Test, name: string, limit: number) {
    this.limit = limit
    this.#version = existsSync(join(ROOT, 'memory')) ? 1 : 2
    this.folder = join(ROOT, this.#version === 1 ? 'memory' : '', `thinfs-${process.pid}-${name}`)
    mkdirSync(this.folder)
    t.teardown(() => this.#remove())
    const file = this.#version === 1 ? 'memory.limit_in_bytes' : 'memory.max'
    writeFileSync(join(this.folder, file), String(limit))
  }

  /** A script's line that puts itself, and all that it starts, into the group. */
  get join(): string {
    return `echo $$ > ${this.folder}/cgroup.procs`
  }

  add(pid: number): void {
    writeFileSync(join(this.folder, 'cgroup.procs'), String(pid))
  }

  /** How many processes of the group the kernel has killed for want of memory. */
  get nrKilled(): number {
    const file = this.#version === 1 ? 'memory.oom_control' : 'memory.events'
    const text = readFileSync(join(this.folder, file), 'utf8')
    return Number(/^oom_kill (\d+)$/m.exec(text)![1])
  }

  /** Its processes go on without a limit. */
  #remove(): void {
    const others = join(this.folder, '..', 'cgroup.procs')
    for (const pid of readFileSync(join(this.folder, 'cgroup.procs'), 'utf8').split('\n')) {
      if (pid !== '') writeFileSync(others, pid)
    }
    rmdirSync(this.folder)
  }
}
