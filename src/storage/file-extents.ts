import { bytes } from '../base/index.js'
import { ExtentStore } from './extent-store.js'
import type { FileStore } from './file-store.js'

/** Parts of one file, one behind the other: what a pool has of a disk image. */
export class FileExtents extends ExtentStore {
  readonly #file: FileStore

  /**
   * @param file belongs to this store from now on, which closes it
   * @param extents bytes
   */
  constructor(file: FileStore, extents: readonly { offset: number; size: number }[]) {
    super(
      file.path,
      extents.map(({ offset, size }) => ({
        store: file,
        ...{ offset: bytes(offset), length: bytes(size) },
      })),
    )
    this.#file = file
  }

  /** The descriptor of the file. */
  get fd(): number {
    return this.#file.fd
  }

  get isRemoved(): boolean {
    return this.#file.isRemoved
  }

  /** The whole file. See `FileStore.lock`. */
  lock(): boolean {
    return this.#file.lock()
  }

  /** See `FileStore.holdsLock`. */
  holdsLock(): boolean {
    return this.#file.holdsLock()
  }

  /** A label would be that of the file, of which others have parts. */
  readLabel(): null {
    return null
  }

  override close(): void {
    this.#file.close()
  }
}
