/**
 * A mount that is served through fuse-native. libfuse reads the requests on threads of its own,
 * each of which waits until its request was answered in this one.
 */
import { ThinfsError } from '../base/index.js'
import { native } from '../native.js'
import { mountFuseNative } from './fuse-native.js'
import { libfuseOperations } from './libfuse-operations.js'
import { LibfuseRequests } from './libfuse-requests.js'
import type { Session, SessionOptions } from './transport.js'

/** In place of a fallocate: the end of the mount. */
const ENDED = -1

/** Serves from when it is made until the file system is unmounted; a process has one. */
export class LibfuseSession implements Session {
  readonly #options: SessionOptions
  readonly #requests: LibfuseRequests
  #ended = false

  constructor(options: SessionOptions) {
    const { fd, fileSystem } = options
    this.#options = options
    this.#requests = new LibfuseRequests({
      fileSystem,
      onError: (operation, err) => options.onError?.(operation, 0, err),
      onFatal: err => this.#fail(err),
    })
    const operations = libfuseOperations(fileSystem, this.#requests, () => this.#initialized())
    native.fuse_native_prepare(fd, (id, handle, mode, offset, length) => {
      if (id === ENDED) this.#end(handle)
      else
        operations.fallocate(handle, mode, offset, length, result =>
          native.fuse_native_answer(id, result),
        )
    })
    mountFuseNative(operations, err => this.#fail(err))
  }

  resend(): boolean {
    return false
  }

  async invalidate(): Promise<void> {}

  close(): void {
    this.#ended = true
    this.#requests.stop()
  }

  #initialized(): void {
    const { bound, ...agreed } = native.fuse_native_agreed()
    if (!bound) {
      const reason = 'transport fuse-native: the mount did not go through native-shims'
      this.#fail(new ThinfsError('NOT_SUPPORTED', reason))
      return
    }
    this.#options.onInitialized({ ...agreed, flags2: 0, transport: 'fuse-native' })
    this.#options.onCaughtUp?.()
  }

  /** @param errno 0: it was unmounted */
  #end(errno: number): void {
    if (this.#ended) return
    this.close()
    if (errno === 0) this.#options.onUnmounted()
    else
      this.#options.onFatal(new ThinfsError('IO_ERROR', `libfuse stopped reading: errno ${errno}`))
  }

  #fail(err: unknown): void {
    if (this.#ended) return
    this.close()
    this.#options.onFatal(err)
  }
}
