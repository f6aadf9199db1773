/**
 * Files and disks that several users have parts of, each open once in this process: its lock, and
 * the claim on a disk, are all users'.
 */
import { type BigIntStats, statSync } from 'node:fs'
import { errnoOf, ThinfsError } from '../base/index.js'
import { FileStore } from './file-store.js'

interface Shared {
  key: string
  file: FileStore
  users: number
}

export class SharedFiles {
  readonly #byKey = new Map<string, Shared>()
  readonly #byFile = new Map<FileStore, Shared>()

  /**
   * The file or disk at `path`, locked unless it is only read. Callers give it back with `release`.
   * @throws POOL_IN_USE when another process has it; NOT_TRUSTED, IO_ERROR
   */
  take(path: string, readOnly: boolean): FileStore {
    const key = `${idOf(path)} ${readOnly}`
    let shared = this.#byKey.get(key)
    if (shared === undefined) {
      shared = { key, file: openLocked(path, readOnly), users: 0 }
      this.#byKey.set(key, shared)
      this.#byFile.set(shared.file, shared)
    }
    shared.users++
    // Somebody may have made it longer since it was opened.
    shared.file.measure()
    return shared.file
  }

  release(file: FileStore): void {
    const shared = this.#byFile.get(file)!
    if (--shared.users > 0) return
    this.#byKey.delete(shared.key)
    this.#byFile.delete(file)
    file.close()
  }
}

/**
 * Tells a file or disk from every other of the machine, whatever its name.
 * @throws IO_ERROR when there is none
 */
export function idOf(path: string): string {
  let stat: BigIntStats
  try {
    stat = statSync(path, { bigint: true })
  } catch (err) {
    const detail = `${path}: ${(err as Error).message}`
    throw new ThinfsError('IO_ERROR', detail, { cause: err, errno: errnoOf(err) })
  }
  return stat.isBlockDevice() ? `disk-${stat.rdev}` : `${stat.dev}-${stat.ino}`
}

function openLocked(path: string, readOnly: boolean): FileStore {
  const file = FileStore.open(path, { readOnly })
  try {
    if (readOnly || file.lock()) return file
    throw new ThinfsError('POOL_IN_USE', `${path}: another process has it`)
  } catch (err) {
    file.close()
    throw err
  }
}
