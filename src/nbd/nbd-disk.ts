/**
 * A disk that an NBD server has.
 *
 * When the connection ends, another one is made and the requests without an answer are sent again;
 * each has a time limit over all of that. Once a request has missed it, or the server does not keep
 * to the protocol, the disk has failed for good: nobody knows which writes will still land.
 */
import {
  allEnded,
  type Bytes,
  errnoOf,
  isLost,
  lengthOf,
  type NbdAddress,
  type Pieces,
  piecesOf,
  slicePieces,
  ThinfsError,
} from '../base/index.js'
import { ALLOCATION, COMMAND, COMMAND_FLAG, EXPORT_FLAG } from './abi.js'
import { Connection } from './connection.js'
import { isFinal, isTaken } from './errors.js'
import { type Export, type Negotiated, negotiate } from './handshake.js'
import { Request } from './request.js'

/** Milliseconds that a request may take, connections included. */
const LIMIT = 30_000
/** Milliseconds between two attempts to connect: the first, and the most. */
const PAUSE = 20
const PAUSE_MAX = 1000
/** How often a server that closes the first connection is tried again, and after how long. */
const BUSY_TRIES = 25
const BUSY_PAUSE = 200
/** The errors of a server that refuses one more client: it ends the connection, or is silent. */
const REFUSALS = ['ECONNRESET', 'EPIPE', 'ETIMEDOUT']
/** Milliseconds that a server may take for its first word, of half the limit at most. */
const PATIENCE = 10_000
/** Bytes of one request without a payload. */
const SPAN_MAX = 1024 * 1024 * 1024
/** Zeros are sent where the server cannot make them: bytes at a time. */
const ZEROS = Buffer.alloc(1024 * 1024)

/** A range that holds something, or may. Bytes. */
export interface Extent {
  offset: number
  length: number
}

export interface NbdOptions {
  /** Milliseconds that a request may take, connections included. Default: 30 s. */
  limit?: number
  /** The connection ended, or another one was made. */
  onConnection?: (what: string) => void
  /**
   * Asked by each connection but the first before anything is sent again by it: somebody else may
   * have had the disk meanwhile.
   * @param read reads by that connection
   * @throws FENCED, LOCK_LOST: the disk has failed for good then; after any other error it connects
   *   once more
   */
  mayGoOn?: (read: (into: Uint8Array, offset: number) => Promise<void>) => Promise<void>
}

export class NbdDisk {
  /** Names the disk in messages: its address. */
  readonly path: string
  /** How many connections were made: what an earlier one wrote and did not flush may be lost. */
  epoch = 0
  readonly #address: NbdAddress
  readonly #limit: number
  readonly #onConnection: (what: string) => void
  readonly #mayGoOn: NbdOptions['mayGoOn']
  #export: Export
  #connection: Connection | null = null
  readonly #requests = new Map<number, Request>()
  #nextCookie = 0
  #failure: ThinfsError | null = null
  #isClosed = false
  /** Whether the server has answered a request since the last attempt to connect. */
  #hasAnswered = true
  #timer: NodeJS.Timeout | null = null
  readonly #ended = new AbortController()

  /**
   * Connects.
   * @throws IO_ERROR, NOT_SUPPORTED, POOL_IN_USE where the server lets nobody else in; with the
   *   address
   */
  static async connect(address: NbdAddress, options: NbdOptions = {}): Promise<NbdDisk> {
    const signal = AbortSignal.timeout(options.limit ?? LIMIT)
    try {
      const negotiated = await negotiateWhenFree(address, signal, patienceOf(options))
      const disk = new NbdDisk(address, negotiated.export, options)
      await disk.#use(negotiated)
      return disk
    } catch (err) {
      throw named(address, signal.aborted ? noAnswer(options.limit ?? LIMIT) : err)
    }
  }

  private constructor(address: NbdAddress, chosen: Export, options: NbdOptions) {
    this.path = address.text
    this.#address = address
    this.#export = chosen
    this.#limit = options.limit ?? LIMIT
    this.#onConnection = options.onConnection ?? (() => {})
    this.#mayGoOn = options.mayGoOn
  }

  /** Bytes; a server tells them with each connection, and it may be more than before. */
  get size(): Bytes {
    return this.#export.size as Bytes
  }

  /** Bytes; offsets and lengths of all calls have to be multiples of it. */
  get minBlock(): number {
    return this.#export.minBlock
  }

  get isReadOnly(): boolean {
    return this.#can(EXPORT_FLAG.READ_ONLY)
  }

  /** Whether the server makes zeros by itself; else they are sent. */
  get makesHoles(): boolean {
    return this.#can(EXPORT_FLAG.SEND_WRITE_ZEROES)
  }

  /** Whether the server lets several clients write, and a flush of one covers all. */
  get isShared(): boolean {
    return this.#can(EXPORT_FLAG.CAN_MULTI_CONN)
  }

  /** Requests without an answer. */
  get nrInFlight(): number {
    return this.#requests.size
  }

  /** Fills `into`, which has to stay until then. @throws IO_ERROR with the server's errno */
  read(into: Pieces, offset: number): Promise<void> {
    const pieces = piecesOf(into)
    return this.#inParts(offset, lengthOf(pieces), this.#export.maxPayload, (at, length) => {
      const part = slicePieces(pieces, at, at + length)
      return this.#ask(COMMAND.READ, 0, offset + at, length, null, part)
    })
  }

  /**
   * Writes `from`, which has to stay as it is until then.
   * @param durable whether it has to survive a power cut of the server, as a flush sees to (FUA)
   */
  write(from: Pieces, offset: number, durable = false): Promise<void> {
    const pieces = piecesOf(from)
    const fua = durable && this.#can(EXPORT_FLAG.SEND_FUA)
    const flags = fua ? COMMAND_FLAG.FUA : 0
    const written = this.#inParts(
      ...([offset, lengthOf(pieces), this.#export.maxPayload] as const),
      (at, length) => {
        const part = slicePieces(pieces, at, at + length)
        return this.#ask(COMMAND.WRITE, flags, offset + at, length, part, null)
      },
    )
    return durable && !fua ? written.then(() => this.flush()) : written
  }

  /**
   * Makes a range read as zeros, with less space where the server can.
   * @param keepsSpace whether the server is to keep space for it
   */
  async zero(offset: number, length: number, keepsSpace = false): Promise<void> {
    if (this.#can(EXPORT_FLAG.SEND_WRITE_ZEROES)) {
      const flags = keepsSpace ? COMMAND_FLAG.NO_HOLE : 0
      return this.#inParts(offset, length, SPAN_MAX, (at, size) =>
        this.#ask(COMMAND.WRITE_ZEROES, flags, offset + at, size, null, null),
      )
    }
    const most = Math.min(ZEROS.length, this.#export.maxPayload)
    for (let at = 0; at < length; at += most) {
      const part = ZEROS.subarray(0, Math.min(most, length - at))
      await this.#ask(COMMAND.WRITE, 0, offset + at, part.length, [part], null)
    }
  }

  /**
   * Tells the server that nobody needs what is in a range. It reads as anything afterwards: to
   * clear a range is `zero`.
   */
  async trim(offset: number, length: number): Promise<void> {
    if (!this.#can(EXPORT_FLAG.SEND_TRIM)) return
    await this.#inParts(offset, length, SPAN_MAX, (at, size) =>
      this.#ask(COMMAND.TRIM, 0, offset + at, size, null, null),
    )
  }

  /**
   * Makes what was written durable, as far as one connection goes: where `epoch` has changed since
   * a write, the server may have lost that before.
   */
  async flush(): Promise<void> {
    if (this.#can(EXPORT_FLAG.SEND_FLUSH)) await this.#ask(COMMAND.FLUSH, 0, 0, 0, null, null)
    else if (this.#failure !== null) throw this.#failure
  }

  /**
   * The parts of a range that are not known to read as zeros, ascending; null where the server
   * cannot tell.
   */
  async extents(offset: number, length: number): Promise<Extent[] | null> {
    if (this.#export.allocation === null) return null
    const found: Extent[] = []
    for (let at = offset; at < offset + length; ) {
      const size = Math.min(SPAN_MAX, offset + length - at)
      for (const run of await this.#runs(at, size)) {
        const last = found.at(-1)
        if ((run.flags & ALLOCATION.ZERO) === 0) {
          if (last !== undefined && last.offset + last.length === at) last.length += run.length
          else found.push({ offset: at, length: run.length })
        }
        at += run.length
      }
    }
    return found
  }

  /**
   * Whether the server lets in so many clients beside this one: tries it. Which flags it has says
   * nothing of that. It takes as long as a server may take for its first word.
   */
  async letsInMore(clients: number): Promise<boolean> {
    const { epoch } = this
    const others: Connection[] = []
    const nobody = { find: () => undefined, ended: () => {}, lost: () => {} }
    try {
      while (others.length < clients) {
        const patience = patienceOf({ limit: this.#limit })
        const negotiated = await negotiate(this.#address, this.#ended.signal, patience)
        others.push(new Connection(negotiated, nobody))
      }
      // The server may have ended this connection for one of the others: the disk has another then.
      await this.read(Buffer.alloc(this.minBlock), 0)
      return this.epoch === epoch
    } catch (err) {
      if (this.#failure !== null) return false
      // Any other error proves nothing: the server may let in other clients.
      const isRefusal = err instanceof ThinfsError && err.code === 'POOL_IN_USE'
      return !isRefusal && !REFUSALS.includes(errnoOf(err))
    } finally {
      for (const other of others) other.close()
    }
  }

  /** Ends the connection in order. Requests that have no answer fail. */
  close(): void {
    if (this.#isClosed) return
    this.#isClosed = true
    if (this.#failure !== null) return
    const connection = this.#connection
    this.#connection = null
    connection?.close()
    this.#fail(wasClosed())
  }

  /** Ends the connection at once: nothing that was not sent yet is sent any more. */
  abandon(): void {
    this.#isClosed = true
    this.#fail(wasClosed())
  }

  // --- inside ---

  #can(flag: number): boolean {
    return (this.#export.flags & flag) !== 0
  }

  #inParts(
    offset: number,
    length: number,
    most: number,
    ask: (at: number, length: number) => Promise<void>,
  ): Promise<void> {
    if (offset < 0 || offset + length > this.size) {
      const detail = `${this.path}: ${length} bytes at ${offset}, past the end at ${this.size}`
      return Promise.reject(new ThinfsError('IO_ERROR', detail))
    }
    if (length <= most) return length === 0 ? Promise.resolve() : ask(0, length)
    const parts: Promise<void>[] = []
    for (let at = 0; at < length; at += most) parts.push(ask(at, Math.min(most, length - at)))
    return allEnded(parts)
  }

  async #runs(offset: number, length: number): Promise<Request['runs']> {
    let request: Request | null = null
    await new Promise<void>((resolve, reject) => {
      request = this.#begin(COMMAND.BLOCK_STATUS, 0, offset, length, null, null, resolve, reject)
    })
    return request!.runs
  }

  #ask(
    command: number,
    flags: number,
    offset: number,
    length: number,
    data: readonly Uint8Array[] | null,
    into: readonly Uint8Array[] | null,
  ): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#begin(command, flags, offset, length, data, into, resolve, reject)
    })
  }

  #begin(
    command: number,
    flags: number,
    offset: number,
    length: number,
    data: readonly Uint8Array[] | null,
    into: readonly Uint8Array[] | null,
    resolve: () => void,
    reject: (err: Error) => void,
  ): Request {
    const deadline = performance.now() + this.#limit
    const what = { command, flags, offset, length, data, into, deadline }
    const request = new Request(what, resolve, err => reject(named(this.#address, err)))
    if (this.#failure !== null) {
      request.fail(this.#failure)
      return request
    }
    while (this.#requests.has(this.#nextCookie)) this.#nextCookie = (this.#nextCookie + 1) >>> 0
    const cookie = this.#nextCookie
    this.#nextCookie = (cookie + 1) >>> 0
    this.#requests.set(cookie, request)
    this.#connection?.send(cookie, request)
    this.#watch()
    return request
  }

  /** Keeps a timer running as long as requests are in flight. */
  #watch(): void {
    if (this.#timer !== null) return
    const period = Math.max(10, Math.min(1000, this.#limit / 10))
    this.#timer = setInterval(() => {
      // Requests have one limit, so the first one is the oldest.
      for (const { deadline } of this.#requests.values()) {
        if (performance.now() > deadline) this.#fail(noAnswer(this.#limit))
        return
      }
      this.#stopWatching()
    }, period)
  }

  #stopWatching(): void {
    if (this.#timer !== null) clearInterval(this.#timer)
    this.#timer = null
  }

  /** Goes on by a connection, which may ask first. */
  async #use(negotiated: Negotiated, mayGoOn: NbdOptions['mayGoOn'] = undefined): Promise<void> {
    const asked = new Map<number, Request>()
    let requests = mayGoOn === undefined ? this.#requests : asked
    let lost: ThinfsError | null = null
    const connection = new Connection(negotiated, {
      find: cookie => requests.get(cookie),
      ended: (cookie, request) => {
        this.#hasAnswered = true
        requests.delete(cookie)
        request.end()
      },
      lost: err => {
        lost = err
        if (requests === this.#requests) this.#lost(err)
        else for (const request of asked.values()) request.fail(err)
      },
    })
    if (mayGoOn !== undefined) {
      const ended = (): void => {
        connection.destroy()
        for (const request of asked.values()) request.fail(this.#failure!)
      }
      this.#ended.signal.addEventListener('abort', ended)
      try {
        await mayGoOn((into, offset) => this.#askBy(connection, asked, into, offset))
        if (lost !== null) throw lost
        if (this.#failure !== null) throw this.#failure
      } catch (err) {
        connection.destroy()
        throw err
      } finally {
        this.#ended.signal.removeEventListener('abort', ended)
      }
      requests = this.#requests
    }
    this.epoch++
    this.#connection = connection
    for (const [cookie, request] of this.#requests) {
      request.restart()
      connection.send(cookie, request)
    }
  }

  /** Reads by a connection that is not in use yet. */
  #askBy(
    connection: Connection,
    asked: Map<number, Request>,
    into: Uint8Array,
    offset: number,
  ): Promise<void> {
    return new Promise((resolve, reject) => {
      const read = { command: COMMAND.READ, flags: 0, offset, length: into.length }
      const deadline = performance.now() + this.#limit
      const request = new Request({ ...read, data: null, into: [into], deadline }, resolve, reject)
      asked.set(asked.size, request)
      connection.send(asked.size - 1, request)
    })
  }

  #lost(err: ThinfsError): void {
    this.#connection = null
    if (isFinal(err)) {
      this.#fail(err)
      return
    }
    this.#onConnection(`the connection is lost: ${err.message}`)
    void this.#reconnect(err)
  }

  async #reconnect(lost: ThinfsError): Promise<void> {
    const end = performance.now() + this.#limit
    let why: unknown = lost
    // A server that ends each connection before it has answered is not asked all the time.
    const first = this.#hasAnswered ? 0 : PAUSE
    this.#hasAnswered = false
    for (let pause = first; performance.now() < end; pause = nextPause(pause)) {
      // A server that takes no second client may still have the first.
      await new Promise(resolve => setTimeout(resolve, pause))
      if (this.#failure !== null) return
      const timeout = AbortSignal.timeout(Math.max(1, Math.ceil(end - performance.now())))
      try {
        const signal = AbortSignal.any([timeout, this.#ended.signal])
        const negotiated = await negotiate(
          this.#address,
          signal,
          patienceOf({ limit: this.#limit }),
        )
        if (this.#failure !== null) {
          negotiated.socket.on('error', () => {})
          negotiated.socket.destroy()
          return
        }
        mustBeSame(this.#export, negotiated.export)
        await this.#use(negotiated, this.#mayGoOn)
        this.#export = { ...this.#export, size: negotiated.export.size }
        this.#onConnection('connected again')
        return
      } catch (err) {
        if (this.#failure !== null) return
        if (isFinal(err) || isLost(err)) return this.#fail(err as ThinfsError)
        if (!timeout.aborted) why = err
      }
    }
    const detail = `no connection for ${this.#limit} ms: ${(why as Error).message}`
    this.#fail(new ThinfsError('IO_ERROR', detail, { cause: why, errno: 'ETIMEDOUT' }))
  }

  #fail(err: ThinfsError): void {
    if (this.#failure !== null) return
    this.#failure = err
    this.#ended.abort()
    this.#stopWatching()
    this.#connection?.destroy()
    this.#connection = null
    const requests = [...this.#requests.values()]
    this.#requests.clear()
    for (const request of requests) request.fail(err)
  }
}

/**
 * As `negotiate`. A server that takes one client at a time may not have noticed yet that the one
 * before has gone: it closes the connection.
 */
async function negotiateWhenFree(
  address: NbdAddress,
  signal: AbortSignal,
  patience: number,
): Promise<Negotiated> {
  for (let left = BUSY_TRIES; ; left--) {
    try {
      return await negotiate(address, signal, patience)
    } catch (err) {
      if (errnoOf(err) !== 'ECONNRESET') throw err
      if (left === 0) throw isTaken('ends each connection at once', err)
      await new Promise(resolve => setTimeout(resolve, BUSY_PAUSE))
    }
  }
}

const patienceOf = ({ limit = LIMIT }: NbdOptions): number => Math.min(PATIENCE, limit / 2)

const nextPause = (pause: number): number => Math.min(Math.max(PAUSE, 2 * pause), PAUSE_MAX)

const wasClosed = (): ThinfsError =>
  new ThinfsError('IO_ERROR', 'the disk was closed', { errno: 'ESHUTDOWN' })

const noAnswer = (limit: number): ThinfsError =>
  new ThinfsError('IO_ERROR', `no answer from the server for ${limit} ms`, { errno: 'ETIMEDOUT' })

const { READ_ONLY, SEND_FLUSH, SEND_FUA, SEND_TRIM, SEND_WRITE_ZEROES } = EXPORT_FLAG
/** Abilities that an export keeps when its server comes back; new ones do no harm. */
const ABILITIES = SEND_FLUSH | SEND_FUA | SEND_TRIM | SEND_WRITE_ZEROES

/**
 * An export may have become larger.
 * @throws IO_ERROR, EPROTO where it is smaller, or the server has another one by that name now
 */
function mustBeSame(before: Export, now: Export): void {
  if (now.size < before.size) {
    const what = `the export has ${now.size} bytes now, it had ${before.size}`
    const detail = `${what}: nothing is sent to it any more; make it as large again`
    throw new ThinfsError('IO_ERROR', detail, { errno: 'EPROTO' })
  }
  const isSame =
    (before.flags & READ_ONLY) === (now.flags & READ_ONLY) &&
    (before.flags & ABILITIES & ~now.flags) === 0 &&
    before.structured === now.structured &&
    before.allocation === now.allocation &&
    before.minBlock === now.minBlock &&
    before.maxPayload <= now.maxPayload
  if (isSame) return
  const what = `with flags ${now.flags}, not ${before.flags}, or blocks of other sizes`
  throw new ThinfsError('IO_ERROR', `another export has the name now: ${what}`, { errno: 'EPROTO' })
}

/** The error with the address in front. */
function named({ text }: NbdAddress, err: unknown): Error {
  if (!(err instanceof ThinfsError) || err.message.startsWith(text)) return err as Error
  const { code, errno, message } = err
  return new ThinfsError(code, `${text}: ${message}`, { cause: err, errno })
}
