/** The layout of an ephemeral pool's folder. */
import { randomBytes } from 'node:crypto'
import { join } from 'node:path'
import type { PoolPlace } from '../config/index.js'

/** A name for a new one. */
export const newBase = (): string => `thinfs-${randomBytes(6).toString('hex')}`

export const isBase = (name: string): boolean => /^thinfs-[0-9a-f]{12}$/.test(name)

/** An ephemeral pool, by the folder that has all of it. */
export class Layout {
  readonly base: string
  /** The pool's folder. */
  readonly pool: string
  /** The folder at which it is mounted. */
  readonly mountPoint: string
  /** A folder for each filesystem that is mounted from a volume. */
  readonly filesystems: string
  /** A file that is locked as long as somebody has the pool. */
  readonly alive: string

  constructor(base: string) {
    this.base = base
    this.pool = join(base, 'pool')
    this.mountPoint = join(base, 'mount')
    this.filesystems = join(base, 'fs')
    this.alive = join(base, 'alive')
  }

  get place(): PoolPlace {
    return { file: join(this.pool, 'pool.yaml'), folder: this.pool }
  }
}
