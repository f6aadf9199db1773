/** What is where in the folder of an ephemeral pool. */
import { join } from 'node:path'
import type { PoolPlace } from '../config/index.js'

/** An ephemeral pool, by the folder that has all of it. */
export class Layout {
  readonly base: string
  /** The pool's folder. */
  readonly pool: string
  /** Where it is mounted. */
  readonly mountPoint: string
  /** A folder for each filesystem that is mounted from a volume. */
  readonly filesystems: string

  constructor(base: string) {
    this.base = base
    this.pool = join(base, 'pool')
    this.mountPoint = join(base, 'mount')
    this.filesystems = join(base, 'fs')
  }

  get place(): PoolPlace {
    return { file: join(this.pool, 'pool.yaml'), folder: this.pool }
  }
}
