/** A cgroup that holds this process and lets it start no other. */
import { existsSync, mkdirSync, rmdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Test } from 'tap'

const ROOTS = ['/sys/fs/cgroup/pids', '/sys/fs/cgroup']

const root = (): string | undefined =>
  process.getuid?.() === 0 ? ROOTS.find(path => existsSync(join(path, 'cgroup.procs'))) : undefined

export class PidsCgroup {
  readonly #folder: string

  static available(): boolean {
    return root() !== undefined
  }

  constructor(t: Test, name: string) {
    this.#folder = join(root()!, `thinfs-${process.pid}-${name}`)
    mkdirSync(this.#folder)
    writeFileSync(join(this.#folder, 'pids.max'), '1')
    t.teardown(() => rmdirSync(this.#folder))
  }

  /** Runs `use` while fork(2) fails with EAGAIN. */
  async full(use: () => Promise<void>): Promise<void> {
    writeFileSync(join(this.#folder, 'cgroup.procs'), String(process.pid))
    try {
      await use()
    } finally {
      writeFileSync(join(this.#folder, '..', 'cgroup.procs'), String(process.pid))
    }
  }
}
