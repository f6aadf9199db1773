/**
 * The typed face of native-shims/: the system calls that Node lacks.
 *
 * Everything throws an Error with `code` (the errno's name), `errno` and `syscall`, as node:fs
 * does. A call that can wait for long returns a promise and runs on the thread pool.
 */
import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { ThinfsError } from './base/index.js'

declare const watch: unique symbol
/** A descriptor that is being watched. It ends when this is collected: hold on to it. */
export type Watch = { readonly [watch]: true }

declare const ring: unique symbol
/** A ring. It ends when this and its ArrayBuffers are collected. */
export type RingHandle = { readonly [ring]: true }

declare const cephCluster: unique symbol
/** A client of a Ceph cluster, until `ceph_close`. */
export type CephHandle = { readonly [cephCluster]: true }

declare const rbdImage: unique symbol
/** An open image, until `rbd_close`. */
export type RbdHandle = { readonly [rbdImage]: true }

export interface Binding {
  /** Fills `length` bytes of `buffer` at `at`. `EOF` when the file ends before. */
  file_read(fd: number, buffer: Uint8Array, at: number, length: number, offset: number): void
  /**
   * As `file_read`, but never waits for a device (RWF_NOWAIT). `EOPNOTSUPP` where the file system
   * cannot promise that.
   * @returns false when some of the bytes are not in memory
   */
  file_read_now(fd: number, buffer: Uint8Array, at: number, length: number, offset: number): boolean
  /** Writes `length` bytes of `buffer` from `at`, all of them. */
  file_write(fd: number, buffer: Uint8Array, at: number, length: number, offset: number): void
  /** copy_file_range(2) within a file, of all the bytes. */
  file_copy(fd: number, source: number, target: number, length: number): void
  /**
   * Copies bytes within a file on the thread pool, and waits until they are on the disk.
   * @param keepHoles what is a hole of the source is not written
   */
  file_copy_async(
    fd: number,
    source: number,
    target: number,
    length: number,
    keepHoles: boolean,
  ): Promise<void>
  /** fallocate(2). */
  file_allocate(fd: number, mode: number, offset: number, length: number): void
  /**
   * fallocate(2) on the thread pool, once for each offset and length of `ranges`, one after the
   * other.
   * @returns a promise for each
   */
  file_allocate_async(fd: number, mode: number, ranges: Float64Array): Promise<void>[]
  /** lseek(2); -1 when nothing of the kind follows (ENXIO). */
  file_seek(fd: number, offset: number, whence: number): number
  /** Locks the whole open file description (F_OFD_SETLK). False when another one has the lock. */
  file_lock(fd: number, exclusive: boolean): boolean
  /** As `file_lock`, for a part of the file, in which there need not be anything. */
  file_lock_range(fd: number, exclusive: boolean, offset: number, length: number): boolean
  /** fgetxattr(2), as text of at most 255 bytes; null when there is none. */
  file_get_attribute(fd: number, name: string): string | null
  /** fsetxattr(2). */
  file_set_attribute(fd: number, name: string, text: string): void
  /**
   * ioctl(2) on the thread pool.
   * @param argument a Buffer that is large enough for the command and is changed by it, or a number
   * @returns what the call does: 0 for success, or what the command says of a number above
   */
  file_ioctl_async(fd: number, command: number, argument: Buffer | number): Promise<number>

  /**
   * Reads the requests that wait on a non-blocking /dev/fuse, one to each `slotSize` bytes of
   * `buffer`, at most `slots`, until `enough` bytes came; their sizes go to `lengths`. Looks for
   * the first one for `spin` microseconds.
   * @returns how many; -1 when the file system is unmounted
   */
  fuse_read(
    fd: number,
    buffer: Uint8Array,
    slotSize: number,
    slots: number,
    lengths: Uint32Array,
    enough: number,
    spin: number,
  ): number
  /** Writes one reply. @returns 0 or the negative errno */
  fuse_write(fd: number, buffer: Uint8Array, at: number, length: number): number
  /**
   * Another descriptor of the connection: what is read by it fails with ECONNABORTED when it is
   * closed unanswered.
   */
  fuse_clone(fd: number): number

  /**
   * Opens libfuse 2 (the one that is loaded already, else the file `library`, else the system's).
   * fuse-native, loaded afterwards, calls the shim in its place.
   */
  fuse_native_bind(library: string): void
  /** Whether fuse-native's calls of libfuse reach the shim. */
  fuse_native_bound(): boolean
  /**
   * Gives the connection `fd`, which blocks from now on, to fuse-native's next mount, the only one
   * of a process. Calls back for each fallocate, with an id to answer it by; and once, when nothing
   * more can come, with the id -1 and an errno as the handle: 0 when it was unmounted.
   */
  fuse_native_prepare(
    fd: number,
    onCall: (id: number, handle: number, mode: number, offset: number, length: number) => void,
  ): void
  /** Answers a fallocate with 0 or a negative errno. @returns whether a caller waited */
  fuse_native_answer(id: number, result: number): boolean
  /** User and group id of the caller of the CREATE that is being handled. */
  fuse_native_creator(): [uid: number, gid: number]
  /** The outcome of INIT. `bound`: fuse-native mounted, made and ran libfuse through the shim. */
  fuse_native_agreed(): {
    bound: boolean
    minor: number
    flags: number
    maxReadahead: number
    maxWrite: number
  }

  /** Calls `onReadable` from libuv's loop as long as `fd` is readable or broken. */
  poll_watch(fd: number, onReadable: () => void): Watch
  poll_unwatch(watch: Watch): void

  /**
   * io_uring_setup(2), of this thread, closed on exec.
   * @param flags 1: entries of 128 bytes instead of 64
   * @param arenaSize bytes of memory at `arenaAddress`
   */
  ring_open(
    entries: number,
    flags: number,
    arenaSize: number,
  ): {
    ring: RingHandle
    /**
     * Readable once something has completed outside of `ring_enter`, until `ring_calm`. The ring's.
     */
    fd: number
    sqEntries: number
    cqEntries: number
    sqes: ArrayBuffer
    cqes: ArrayBuffer
    arena: ArrayBuffer
    arenaAddress: number
  }
  /**
   * Publishes both indices, submits the entries up to `sqTail`, and sleeps until `wait` completions
   * are there. When none is, looks for one for `spin` microseconds.
   * @returns the completions' tail
   */
  ring_enter(ring: RingHandle, sqTail: number, cqHead: number, wait: number, spin: number): number
  /** Makes the ring's `fd` readable. */
  ring_signal(ring: RingHandle): void
  /** Makes the ring's `fd` not readable, until something completes. */
  ring_calm(ring: RingHandle): void
  /** Frees the ring; its ArrayBuffers are empty afterwards. Reads into memory have completed. */
  ring_close(ring: RingHandle): void
  /** The address of the bytes of `buffer`, as long as it lives: those of a Buffer do not move. */
  buffer_address(buffer: Uint8Array): number

  /** A descriptor of `size` bytes of memory (memfd_create(2)), closed on exec. It never shrinks. */
  memory_create(name: string, size: number): number
  /**
   * The bytes [offset, offset + length) of such memory, shared with all who map them.
   * @param offset a multiple of a page
   */
  memory_map(fd: number, offset: number, length: number): ArrayBuffer

  /** mount(2). */
  mount_attach(source: string, target: string, type: string, flags: number, data: string): void
  /** Two connected unix sockets, closed on exec. */
  socket_pair(): [number, number]
  /** A datagram socket at `path`, at most 107 bytes, for the owner alone; closed on exec. */
  socket_bind(path: string): number
  /** Sends a descriptor to the datagram socket at `path`. */
  socket_send_descriptor(path: string, fd: number): void
  /**
   * Sends one datagram, of at most 1023 bytes, to the socket at `path`; with a first `@` that is an
   * abstract name. `EAGAIN` when there is no room for 2 s.
   */
  socket_send_text(path: string, text: string): void
  /**
   * A descriptor out of the message that waits, closed on exec, non-blocking; -1 when the other end
   * closed and sent none. `EAGAIN` when no message waits.
   */
  socket_receive_descriptor(socket: number): number
  /** The user id with which the other end of a unix socket connected or listened (SO_PEERCRED). */
  socket_peer_uid(socket: number): number

  /**
   * Opens the libraries, once in a process. The functions below need them.
   * @returns why that failed; empty when it did not
   */
  rbd_load(librados: string, librbd: string): string
  /**
   * A client, as the file `conf` configures it, not connected yet.
   * @returns also a descriptor that is readable when requests have ended; the client's
   */
  ceph_create(user: string, conf: string): { cluster: CephHandle; fd: number }
  ceph_get(cluster: CephHandle, name: string): string
  ceph_set(cluster: CephHandle, name: string, value: string): void
  ceph_connect(cluster: CephHandle): Promise<void>
  /** The cluster refuses whatever the client with that address sends, for so many seconds. */
  ceph_blocklist(cluster: CephHandle, address: string, seconds: number): Promise<void>
  /** Ends a client whose images are closed. */
  ceph_close(cluster: CephHandle): Promise<void>
  /**
   * Puts tags and results of requests that have ended into `pairs`; a result is a negative errno
   * where it failed.
   * @returns how many; the descriptor stays readable while there are more than have room
   */
  ceph_ended(cluster: CephHandle, pairs: Float64Array): number
  /** An image; each change of its size ends as a request with `tag`. */
  rbd_open(
    cluster: CephHandle,
    pool: string,
    /** Of the pool; empty: the default one. */
    namespace: string,
    name: string,
    readOnly: boolean,
    tag: number,
  ): Promise<RbdHandle>
  /** Closes an image. Its requests have ended. */
  rbd_close(image: RbdHandle): Promise<void>
  /** Size in bytes, features (RBD_FEATURE_*), flags (RBD_FLAG_*). */
  rbd_status(image: RbdHandle): Promise<Float64Array>
  /** Offset and length of each run of objects that exist; quick where there is an object map. */
  rbd_extents(image: RbdHandle, offset: number, length: number): Promise<Float64Array>
  /**
   * Takes the exclusive lock, and gives it to nobody who asks. `EROFS` where another client has it
   * in the same way; one that has died is waited for, then refused by the cluster.
   */
  rbd_lock(image: RbdHandle): Promise<void>
  rbd_unlock(image: RbdHandle): Promise<void>
  /** The addresses of the clients that have the lock: one or none. */
  rbd_lock_owners(image: RbdHandle): Promise<string[]>
  /**
   * Takes the lock from a client, which the cluster refuses for an hour. `EBUSY` where another one
   * has it.
   */
  rbd_lock_break(image: RbdHandle, owner: string): Promise<void>
  /** Begins to fill `into`, which is kept until the request has ended. */
  rbd_read(image: RbdHandle, tag: number, into: Uint8Array, offset: number): void
  rbd_write(image: RbdHandle, tag: number, from: Uint8Array, offset: number): void
  rbd_zero(image: RbdHandle, tag: number, offset: number, length: number): void
  rbd_flush(image: RbdHandle, tag: number): void
  /** The Error of a call that resulted in an errno, positive or negative. */
  system_error(errno: number, call: string): Error

  /** PR_SET_IO_FLUSHER for this thread and those that it starts. Needs CAP_SYS_RESOURCE. */
  process_set_io_flusher(): void
  /** A duplicate of a descriptor of another process (pidfd_getfd(2)), closed on exec. */
  process_descriptor(pid: number, fd: number): number
}

export const native: Binding = load()

/**
 * The addon that was built here or, in a package that has brought one, the one for this machine.
 */
function load(): Binding {
  const require = createRequire(import.meta.url)
  try {
    return require(has('#native') ? '#native' : prebuilt()) as Binding
  } catch (cause) {
    const detail = `no native addon loads here (${(cause as Error).message.split('\n')[0]}): run "npm run native"`
    throw new ThinfsError('NATIVE_MISSING', detail, { cause })
  }

  function has(name: string): boolean {
    try {
      require.resolve(name)
      return true
    } catch {
      return false
    }
  }

  function prebuilt(): string {
    // musl's dynamic linker is its libc, and mapped by its name.
    const libc = readFileSync('/proc/self/maps', 'latin1').includes('/ld-musl-') ? 'musl' : 'glibc'
    return `#prebuilt/${process.arch}-${libc}.node`
  }
}
