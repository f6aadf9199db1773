/**
 * A client of a Ceph cluster: one for all images of a pool, so that the cluster refuses all or
 * nothing of what the pool's host sends.
 *
 * It fails once and for good: when the cluster refuses it, or when a request was not answered in
 * time, since nobody knows then whether it will still be carried out. From then on it asks for
 * nothing, and all requests fail.
 */
import { ThinfsError } from '../base/index.js'
import { type CephHandle, native, type Watch } from '../native.js'
import { cephError, isFinal } from './errors.js'
import { mustHaveCeph } from './library.js'

/**
 * Seconds that the cluster may take for an operation, where ceph.conf says nothing. Far less than
 * an entry of its blocklist lasts, which is an hour: a write that hangs must not come after that.
 */
const LIMIT = 30
/** The most that ceph.conf may say, in seconds. */
const LIMIT_MAX = 600
/** How many times the limit the library may take for a request, which is several operations. */
const PATIENCE = 1.25
/** Requests whose end is told in one call. */
const PAIRS = 64
const TIMEOUTS = ['rados_osd_op_timeout', 'rados_mon_op_timeout', 'client_mount_timeout'] as const

export interface CephOptions {
  /** Path of the cluster's configuration. */
  conf: string
  /** The user without `client.`. */
  user: string
}

/** A request that has not ended. */
interface Request {
  path: string
  call: string
  /** Bytes that a read has to result in; 0 for other requests. */
  length: number
  deadline: number
  resolve: () => void
  reject: (err: ThinfsError) => void
}

/** An image that a client has open. */
interface Image {
  /** Closes it. */
  end(): Promise<void>
}

export class CephClient {
  /** Settles when the client has failed. */
  readonly failed: Promise<ThinfsError>
  readonly handle: CephHandle
  /** Seconds that the cluster may take for an operation. */
  readonly limit: number
  readonly #conf: string
  readonly #watch: Watch
  readonly #pairs = new Float64Array(2 * PAIRS)
  readonly #requests = new Map<number, Request>()
  readonly #changes = new Map<number, () => void>()
  readonly #images = new Set<Image>()
  #nextTag = 0
  #failure: ThinfsError | null = null
  #tellFailure: (err: ThinfsError) => void = () => {}
  #timer: NodeJS.Timeout | null = null
  #closing: Promise<void> | null = null
  /** Resolves when no request is left of those that the library was asked for. */
  #whenIdle: (() => void)[] = []
  #nrAsked = 0

  /** @throws NOT_SUPPORTED without the library; IO_ERROR */
  static async connect(options: CephOptions): Promise<CephClient> {
    mustHaveCeph()
    const client = new CephClient(options)
    try {
      await native.ceph_connect(client.handle)
      return client
    } catch (err) {
      await client.close()
      throw cephError(`${options.conf} as client.${options.user}`, err)
    }
  }

  private constructor({ conf, user }: CephOptions) {
    this.#conf = conf
    const { cluster, fd } = create(conf, user)
    this.handle = cluster
    this.#watch = native.poll_watch(fd, () => this.#take())
    this.failed = new Promise(resolve => {
      this.#tellFailure = resolve
    })
    // librbd acknowledges only what it has written. One cache is enough, and it outlives the
    // engine.
    this.#set('rbd_cache', 'false')
    // A page may change while it is sent; a copy does not.
    this.#set('rbd_disable_zero_copy_writes', 'true')
    const said = TIMEOUTS.slice(0, 2).map(name => Number(native.ceph_get(cluster, name)))
    const limits = said.map(limit => (limit > 0 && limit <= LIMIT_MAX ? limit : LIMIT))
    for (const [i, name] of TIMEOUTS.entries()) this.#set(name, String(limits[i] ?? limits[1]))
    this.limit = limits[0]!
  }

  get failure(): ThinfsError | null {
    return this.#failure
  }

  /**
   * Starts a request, which `start` does with a tag of its own.
   * @param length bytes that a read has to result in; 0 for other requests
   * @throws IO_ERROR
   */
  ask(path: string, call: string, length: number, start: (tag: number) => void): Promise<void> {
    if (this.#failure !== null) return Promise.reject(this.#failure)
    if (this.#closing !== null) return Promise.reject(closedError(path))
    const tag = this.#takeTag()
    return new Promise((resolve, reject) => {
      try {
        start(tag)
      } catch (err) {
        reject(this.#judged(path, err))
        return
      }
      this.#nrAsked++
      const deadline = performance.now() + 1000 * PATIENCE * this.limit
      this.#requests.set(tag, { path, call, length, deadline, resolve, reject })
      this.#watchTime()
    })
  }

  /**
   * As `ask`, of a call on the thread pool.
   * @throws IO_ERROR
   */
  async call<T>(path: string, start: () => Promise<T>): Promise<T> {
    if (this.#failure !== null) throw this.#failure
    if (this.#closing !== null) throw closedError(path)
    try {
      return await start()
    } catch (err) {
      throw this.#judged(path, err)
    }
  }

  /** A tag that calls `onChange` each time that it comes. */
  changeTag(onChange: () => void): number {
    const tag = this.#takeTag()
    this.#changes.set(tag, onChange)
    return tag
  }

  /** Refuses another client for so many seconds, whatever it sends. @throws IO_ERROR */
  blocklist(address: string, seconds: number): Promise<void> {
    return this.call(this.#conf, () => native.ceph_blocklist(this.handle, address, seconds))
  }

  /**
   * Does nothing from now on but what `end` does.
   * @param err why
   */
  fail(err: ThinfsError): void {
    if (this.#failure !== null) return
    this.#failure = err
    this.#stopTime()
    const requests = [...this.#requests.values()]
    this.#requests.clear()
    for (const { reject } of requests) reject(err)
    this.#wakeIdle()
    this.#tellFailure(err)
  }

  /** Counts on an image to be closed before the client is. */
  add(image: Image): void {
    this.#images.add(image)
  }

  remove(image: Image): void {
    this.#images.delete(image)
  }

  /** Resolves when the library has ended all that it was asked for, or the client has failed. */
  idle(): Promise<void> {
    if (this.#nrAsked === 0 || this.#failure !== null) return Promise.resolve()
    return new Promise(resolve => this.#whenIdle.push(resolve))
  }

  /**
   * Closes the images, which gives up their locks, and ends the client. One that has failed is left
   * to the end of the process: the library would wait for the cluster.
   */
  close(): Promise<void> {
    this.#closing ??= this.#end()
    return this.#closing
  }

  async #end(): Promise<void> {
    await Promise.all([...this.#images].map(image => image.end()))
    await this.idle()
    this.#stopTime()
    native.poll_unwatch(this.#watch)
    if (this.#failure === null) await native.ceph_close(this.handle)
  }

  #wakeIdle(): void {
    for (const resolve of this.#whenIdle.splice(0)) resolve()
  }

  /** An option that an older library does not know is none that it needs. */
  #set(name: string, value: string): void {
    try {
      native.ceph_set(this.handle, name, value)
    } catch (err) {
      if ((err as NodeJS.ErrnoException).code !== 'ENOENT') throw cephError(this.#conf, err)
    }
  }

  #takeTag(): number {
    do this.#nextTag = (this.#nextTag + 1) >>> 0
    while (this.#requests.has(this.#nextTag) || this.#changes.has(this.#nextTag))
    return this.#nextTag
  }

  #take(): void {
    for (let count = PAIRS; count === PAIRS; ) {
      count = native.ceph_ended(this.handle, this.#pairs)
      for (let i = 0; i < count; i++) this.#ended(this.#pairs[2 * i]!, this.#pairs[2 * i + 1]!)
    }
  }

  #ended(tag: number, result: number): void {
    const onChange = this.#changes.get(tag)
    if (onChange !== undefined) {
      onChange()
      return
    }
    this.#nrAsked--
    if (this.#nrAsked === 0) this.#wakeIdle()
    const request = this.#requests.get(tag)
    // It has failed with the client.
    if (request === undefined) return
    this.#requests.delete(tag)
    const { path, call, length, resolve, reject } = request
    if (result < 0) reject(this.#judged(path, native.system_error(result, call)))
    else if (result < length) {
      const detail = `${path}: ${call}: ${result} bytes instead of ${length}`
      reject(new ThinfsError('IO_ERROR', detail))
    } else resolve()
  }

  /** Fails with an error of the library that leaves no other way. */
  #judged(path: string, cause: unknown): ThinfsError {
    if (cause instanceof ThinfsError) return cause
    const err = cephError(path, cause)
    if (isFinal(err)) this.fail(err)
    return err
  }

  /** Keeps a timer running as long as requests are in flight. */
  #watchTime(): void {
    if (this.#timer !== null) return
    this.#timer = setInterval(
      () => {
        // Requests have one limit, so the first one is the oldest.
        for (const { deadline, path, call } of this.#requests.values()) {
          if (performance.now() > deadline) {
            this.fail(cephError(path, native.system_error(110, call)))
          }
          return
        }
        this.#stopTime()
      },
      Math.min(1000, 100 * this.limit),
    )
  }

  #stopTime(): void {
    if (this.#timer !== null) clearInterval(this.#timer)
    this.#timer = null
  }
}

function create(conf: string, user: string): ReturnType<typeof native.ceph_create> {
  try {
    return native.ceph_create(`client.${user}`, conf)
  } catch (err) {
    throw cephError(conf, err)
  }
}

const closedError = (path: string): ThinfsError =>
  new ThinfsError('IO_ERROR', `${path}: the disk was closed`, { errno: 'ESHUTDOWN' })
