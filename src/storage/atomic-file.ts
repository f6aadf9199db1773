import { readFileSync, statSync } from 'node:fs'
import { open, rename, rm } from 'node:fs/promises'
import { dirname } from 'node:path'
import { errnoOf, ThinfsError } from '../base/index.js'

/**
 * A small text file that is only ever replaced as a whole: a reader, also one after a power cut,
 * finds the old content or the new.
 */
export class AtomicFile {
  readonly path: string

  constructor(path: string) {
    this.path = path
  }

  /**
   * The content; null when there is no such file.
   * @param most bytes that it may have
   * @throws BAD_ARGUMENT for a larger one, or what is no regular file
   */
  read(most: number): string | null {
    try {
      const stat = statSync(this.path)
      if (!stat.isFile()) throw new ThinfsError('BAD_ARGUMENT', 'is not a regular file')
      if (stat.size > most) throw new ThinfsError('BAD_ARGUMENT', `${stat.size} bytes are too many`)
      return readFileSync(this.path, 'utf8')
    } catch (err) {
      if (errnoOf(err) === 'ENOENT') return null
      throw err
    }
  }

  /**
   * Durable when it resolves: temporary file, fsync, rename, fsync of the folder. Mode 0600. What is in
   * the temporary file's place, left by a crash or a link that somebody has put there, goes and is not
   * followed.
   */
  async replace(content: string): Promise<void> {
    const next = `${this.path}.new`
    await rm(next, { force: true })
    const file = await open(next, 'wx', 0o600)
    try {
      await file.writeFile(content)
      await file.sync()
    } finally {
      await file.close()
    }
    await rename(next, this.path)
    await syncFolder(this.path)
  }
}

/** Makes the name of a file durable: fsync of its folder. */
export async function syncFolder(path: string): Promise<void> {
  const folder = await open(dirname(path))
  try {
    await folder.sync()
  } finally {
    await folder.close()
  }
}
