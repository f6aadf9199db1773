import { closeSync, constants, openSync, readSync } from 'node:fs'
import { type FileHandle, open } from 'node:fs/promises'
import { dirname } from 'node:path'
import { errnoOf, ioError } from '../base/index.js'
import { decodeTenant, TENANCY_BLOCK } from './record.js'
import type { Seen } from './tenancy.js'
import { seenIn, type TenantPlace } from './tenant-place.js'

const { O_RDONLY, O_RDWR, O_CREAT, O_NOFOLLOW } = constants

/**
 * The record of a tenant in a file, which is missing until there was one. It is opened for each
 * look: a network file system promises what another host has written to whoever opens a file
 * (close-to-open consistency), not to whoever has it open.
 */
export class TenantFile implements TenantPlace {
  readonly path: string
  readonly #at: string

  /**
   * @param path what messages call it
   * @param at where system calls find it
   */
  constructor(path: string, at = path) {
    this.path = path
    this.#at = at
  }

  /** Makes an empty one, where there is none. @throws IO_ERROR */
  make(): void {
    try {
      closeSync(openSync(this.#at, O_RDWR | O_CREAT | O_NOFOLLOW, 0o600))
    } catch (err) {
      throw ioError(this.path, err)
    }
  }

  /** As `lookAt`, and waits for it. @throws IO_ERROR, POOL_MISMATCH */
  look(): Seen {
    const blocks = Buffer.alloc(2 * TENANCY_BLOCK)
    try {
      const fd = openSync(this.#at, O_RDONLY | O_NOFOLLOW)
      try {
        readSync(fd, blocks, 0, blocks.length, 0)
      } finally {
        closeSync(fd)
      }
    } catch (err) {
      if (errnoOf(err) !== 'ENOENT') throw ioError(this.path, err)
    }
    const tenant = decodeTenant(blocks.subarray(0, TENANCY_BLOCK), this.path)
    return seenIn(tenant, blocks.subarray(TENANCY_BLOCK))
  }

  async read(into: Uint8Array, offset: number): Promise<void> {
    into.fill(0)
    try {
      await using(await open(this.#at, O_RDONLY | O_NOFOLLOW), async file => {
        await file.read(into, 0, into.length, offset)
      })
    } catch (err) {
      if (errnoOf(err) !== 'ENOENT') throw ioError(this.path, err)
    }
  }

  /** @throws IO_ERROR */
  async write(from: Uint8Array, offset: number): Promise<void> {
    try {
      await using(await open(this.#at, O_RDWR | O_CREAT | O_NOFOLLOW, 0o600), async file => {
        for (let done = 0; done < from.length; ) {
          const { bytesWritten } = await file.write(from, done, from.length - done, offset + done)
          done += bytesWritten
        }
      })
    } catch (err) {
      throw ioError(this.path, err)
    }
  }

  /** Flushes the file, and its name. @throws IO_ERROR */
  async flush(): Promise<void> {
    try {
      await using(await open(this.#at, O_RDWR | O_NOFOLLOW), file => file.sync())
      await using(await open(dirname(this.#at), O_RDONLY), folder => folder.sync())
    } catch (err) {
      throw ioError(this.path, err)
    }
  }
}

async function using(file: FileHandle, use: (file: FileHandle) => Promise<void>): Promise<void> {
  try {
    await use(file)
  } finally {
    await file.close()
  }
}
