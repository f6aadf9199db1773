import type { FileSystem } from './file-system.js'
import type { Negotiated } from './init.js'
import type { MountOptions } from './mount.js'

/** The capabilities of a transport. Users ask for these, and never compare its name.  */
export interface Capabilities {
  /**
   * The mount goes on without its engine: callers wait for the next one, which gets every request
   * that was not answered. Without it the end of an engine is the end of the mount.
   */
  readonly outlivesEngine: boolean
  /** `Session.invalidate` reaches the kernel. */
  readonly notifies: boolean
  /** An open file has a number of its own (`FileSystem.open`), which its release brings back. */
  readonly handles: boolean
  /** fallocate(2) reaches the file system, and with it the discards of a loop device. */
  readonly discards: boolean
  /** SEEK_DATA and SEEK_HOLE reach the file system; without it a file is all data to its reader. */
  readonly seeksHoles: boolean
  /** copy_file_range(2) reaches the file system; without it the kernel reads and writes. */
  readonly copiesRanges: boolean
  /** A signal ends a request that only waits: its caller need not wait for the answer. */
  readonly interrupts: boolean
}

export interface SessionOptions {
  /** The descriptor that `Transport.mount` returned, or a duplicate. The caller closes it. */
  fd: number
  fileSystem: FileSystem
  /** Microseconds to look for a request before sleeping, at most; where that pays. Default: 0. */
  spin?: number
  /** The share of time that may go by looking, over 0 to 1. Default: 1. */
  spinShare?: number
  /** The outcome of INIT with an earlier engine; left out for a new connection. */
  negotiated?: Negotiated
  /** The connection is ready. Not called for a connection that was taken over. */
  onInitialized(negotiated: Negotiated): void
  /**
   * Called once, when all requests that waited in the beginning, those that `resend` asked for
   * among them, were handled: each was answered, or waits for something.
   */
  onCaughtUp?(): void
  /** The connection has ended; called once, and nothing is read any more. */
  onUnmounted(): void
  /**
   * A bug of ours, or a descriptor that fails. Nothing more is read or answered: the process has to
   * end.
   */
  onFatal(err: unknown): void
  /** The file system failed a request; it was answered with the error's errno. */
  onError?(opcode: string, ino: number, err: unknown): void
}

/** A mount that is served: until the file system is unmounted or `close` is called. */
export interface Session {
  /**
   * Asks for what an earlier engine has read and not answered.
   * @returns false when the kernel cannot send it again; see own-descriptor.ts
   */
  resend(): boolean
  /**
   * Makes the kernel forget what it caches of an inode: its attributes, and content from byte
   * `offset`. Resolves when it has: it may write dirty pages to us before, which therefore must not
   * wait for it.
   */
  invalidate(ino: number, offset: number): Promise<void>
  /** Reads no more requests. Requests under way are still answered. */
  close(): void
}

/**
 * A way to speak FUSE: who mounts, how requests come, and what can be done with it. Every transport
 * passes the suite in test/contract/transport.ts, as far as its capabilities go.
 */
export interface Transport {
  /** In pool.yaml, `mount -o transport=` and status. */
  readonly name: string
  readonly capabilities: Capabilities
  /**
   * Mounts on the folder `mountPoint`; called by the process that holds the mount, not by its
   * engine.
   * @returns the connection, for the engines to inherit; null when `serve` mounts, so that there is
   *   nothing that could outlive an engine
   * @throws MOUNT_FAILED with the errno of what failed
   */
  mount(mountPoint: string, options: MountOptions): Promise<number | null>
  /** Serves the mount, in the engine. */
  serve(options: SessionOptions): Session
}
