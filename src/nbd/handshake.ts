/** The beginning of a connection: fixed newstyle negotiation, TLS if wanted, and one export. */
import { readFileSync } from 'node:fs'
import { connect, isIP, type Socket } from 'node:net'
import { join } from 'node:path'
import { connect as connectTls } from 'node:tls'
import { errnoOf, type NbdAddress, ThinfsError } from '../base/index.js'
import {
  ALLOCATION_CONTEXT,
  CLIENT_FLAG,
  HELLO,
  INFO,
  OPTION,
  OPTION_ERROR,
  OPTION_ERRORS,
  OPTION_MAGIC,
  OPTION_REPLY,
  OPTION_REPLY_MAGIC,
  SERVER_FLAG,
} from './abi.js'
import { connectionLost, isTaken, protocolError } from './errors.js'

/** An export, as its server describes it. Bytes. */
export interface Export {
  size: number
  /** EXPORT_FLAG. */
  flags: number
  /** Offsets and lengths of requests have to be multiples of it. */
  minBlock: number
  /** The largest payload of a request. */
  maxPayload: number
  /** Whether replies come in chunks. */
  structured: boolean
  /** The id of base:allocation in replies to BLOCK_STATUS; null where the server has none. */
  allocation: number | null
}

export interface Negotiated {
  /** The socket, or TLS on it. */
  socket: Socket
  incoming: Incoming
  /** Bytes that have come after the negotiation. */
  rest: Buffer
  export: Export
}

/** The bytes that come from a server: whoever has set `take` gets them. */
export interface Incoming {
  /** The bytes are the caller's again afterwards. */
  take: (chunk: Uint8Array) => void
  /**
   * The socket, unless it is of TLS, calls this after `take`.
   * @param usual the buffer for all sorts of bytes
   * @returns the memory that the next bytes go to
   */
  target: (usual: Uint8Array) => Uint8Array
}

/**
 * Bytes that are read from a socket at a time, into one and the same buffer: a new one for each
 * read keeps the garbage collector busy.
 */
const READ_SIZE = 256 * 1024

/**
 * The server's part of the negotiation may have so many bytes in one reply, and so many replies.
 */
const REPLY_MAX = 65_536
const REPLIES_MAX = 1000
/** The block sizes of a server that tells none. Source: proto.md, "Block size constraints". */
const MAX_PAYLOAD = 32 * 1024 * 1024
const MIN_BLOCK_MAX = 65_536

/**
 * Connects to a server and chooses the export. Ends the socket when it fails.
 * @param signal ends the attempt with its reason
 * @param patience milliseconds that the server may take for its first word, once it is reached
 * @throws IO_ERROR with the errno of the socket, EPROTO, or that of the refusal; NOT_SUPPORTED for
 *   a server of the oldstyle negotiation; POOL_IN_USE for one that says nothing
 */
export async function negotiate(
  address: NbdAddress,
  signal: AbortSignal,
  patience: number,
): Promise<Negotiated> {
  signal.throwIfAborted()
  const incoming: Incoming = { take: () => {}, target: usual => usual }
  const take = (chunk: Uint8Array): void => incoming.take(chunk)
  const usual = Buffer.allocUnsafeSlow(READ_SIZE)
  const onread = {
    buffer: () => incoming.target(usual),
    callback(size: number, buffer: Uint8Array): boolean {
      take(buffer.subarray(0, size))
      return true
    },
  }
  const plain = connect({
    ...{ ...address.socket, noDelay: true, keepAlive: true },
    // TLS takes the socket's own stream.
    ...(address.tls === null && { onread }),
  })
  if (address.tls !== null) plain.on('data', take)
  // A server that takes one client at a time leaves the next one in the kernel's queue.
  let waiting: NodeJS.Timeout | undefined
  plain.once('connect', () => {
    waiting = setTimeout(() => plain.destroy(isTaken(`says nothing for ${patience} ms`)), patience)
  })
  let current: Socket = plain
  const abort = (): void => {
    current.destroy(signal.reason)
    plain.destroy(signal.reason)
  }
  signal.addEventListener('abort', abort)
  try {
    let dialogue = new Dialogue(plain, incoming)
    await dialogue.hello()
    clearTimeout(waiting)
    if (address.tls !== null) {
      await dialogue.mustAgree(OPTION.STARTTLS, Buffer.alloc(0), 'TLS')
      plain.off('data', take)
      plain.pause()
      // Whoever sits between could have sent that ahead, to be taken for the server's.
      const ahead = dialogue.end().length + plain.readableLength
      if (ahead > 0) throw protocolError('bytes in plain text before TLS begins')
      current = await secure(plain, address.tls)
      current.on('data', take)
      dialogue = new Dialogue(current, incoming)
    }
    const chosen = await choose(dialogue, address.exportName)
    return { socket: current, incoming, rest: dialogue.end(), export: chosen }
  } catch (err) {
    // Nobody listens to the sockets any more.
    for (const socket of [current, plain]) {
      socket.on('error', () => {})
      socket.destroy()
    }
    if (signal.aborted) throw signal.reason
    throw err
  } finally {
    clearTimeout(waiting)
    signal.removeEventListener('abort', abort)
  }
}

async function choose(dialogue: Dialogue, name: string): Promise<Export> {
  const structured = await dialogue.agrees(OPTION.STRUCTURED_REPLY, Buffer.alloc(0))
  const allocation = structured ? await dialogue.allocationOf(name) : null
  return { ...(await dialogue.go(name)), structured, allocation }
}

/** Begins TLS on a socket. @throws IO_ERROR */
function secure(
  socket: Socket,
  { host, certificates }: NonNullable<NbdAddress['tls']>,
): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const failed = (err: Error): void => reject(tlsError(err))
    try {
      const secured = connectTls({
        socket,
        ...(certificates !== null && readCertificates(certificates)),
        host,
        // A name in the message that begins TLS: addresses are not allowed there.
        ...(isIP(host) === 0 && { servername: host }),
      })
      secured.once('error', failed)
      secured.once('close', () => failed(connectionLost()))
      secured.once('secureConnect', () => {
        secured.off('error', failed)
        secured.removeAllListeners('close')
        resolve(secured)
      })
    } catch (err) {
      failed(err as Error)
    }
  })
}

/** The files that `?tls-certificates` names. @throws errors of open(2) and read(2) */
function readCertificates(folder: string) {
  const optional = (name: string): Buffer | undefined => {
    try {
      return readFileSync(join(folder, name))
    } catch (err) {
      if (errnoOf(err) === 'ENOENT') return undefined
      throw err
    }
  }
  return {
    ca: readFileSync(join(folder, 'ca-cert.pem')),
    cert: optional('client-cert.pem'),
    key: optional('client-key.pem'),
  }
}

/** By Node's code, the parameter of the address that mends it. */
const TLS_CURES: Record<string, string> = {
  ERR_TLS_CERT_ALTNAME_INVALID: '?tls-hostname=NAME says which name it is for',
  ...Object.fromEntries(
    [
      'UNABLE_TO_VERIFY_LEAF_SIGNATURE',
      'UNABLE_TO_GET_ISSUER_CERT',
      'UNABLE_TO_GET_ISSUER_CERT_LOCALLY',
      'SELF_SIGNED_CERT_IN_CHAIN',
      'DEPTH_ZERO_SELF_SIGNED_CERT',
      'CERT_SIGNATURE_FAILURE',
    ].map(code => [code, '?tls-certificates=FOLDER has the ca-cert.pem that it is checked by']),
  ),
}

/** TLS does not come about. */
function tlsError(err: Error & { code?: string; path?: string }): ThinfsError {
  const cure = TLS_CURES[err.code ?? '']
  const file = err.path === undefined ? '' : `${err.path}: `
  const detail = `TLS: ${file}${err.message}${cure === undefined ? '' : `; ${cure}`}`
  return new ThinfsError('IO_ERROR', detail, { cause: err, errno: 'EACCES' })
}

/** The messages of client and server before the first request. */
class Dialogue {
  readonly #socket: Socket
  /** Bytes that have come and that nobody has taken. */
  #held = Buffer.alloc(0)
  #error: Error | null = null
  #wake: () => void = () => {}
  readonly #failed = (err: Error): void => {
    this.#error ??= connectError(err)
    this.#wake()
  }
  readonly #closed = (): void => {
    this.#error ??= connectionLost()
    this.#wake()
  }

  constructor(socket: Socket, incoming: Incoming) {
    this.#socket = socket
    incoming.take = chunk => {
      this.#held = Buffer.concat([this.#held, chunk])
      this.#wake()
    }
    socket.on('error', this.#failed)
    socket.on('end', this.#closed)
    socket.on('close', this.#closed)
  }

  /** Gives the socket back. @returns what has come and was not taken */
  end(): Buffer {
    this.#socket.off('error', this.#failed)
    this.#socket.off('end', this.#closed)
    this.#socket.off('close', this.#closed)
    return this.#held
  }

  async hello(): Promise<void> {
    const hello = await this.#take(18)
    if (!hello.subarray(0, 8).equals(HELLO.subarray(0, 8))) {
      throw protocolError('it does not begin with NBDMAGIC')
    }
    const flags = hello.readUInt16BE(16)
    const isNew = hello.subarray(0, 16).equals(HELLO) && (flags & SERVER_FLAG.FIXED_NEWSTYLE) !== 0
    if (!isNew) {
      const detail = 'the server speaks another negotiation than fixed newstyle: its NBD is too old'
      throw new ThinfsError('NOT_SUPPORTED', detail)
    }
    const ours = Buffer.alloc(4)
    const noZeroes = (flags & SERVER_FLAG.NO_ZEROES) !== 0 ? CLIENT_FLAG.NO_ZEROES : 0
    ours.writeUInt32BE(CLIENT_FLAG.FIXED_NEWSTYLE | noZeroes)
    this.#socket.write(ours)
  }

  /** Whether the server agrees to an option that it may do without. */
  async agrees(option: number, data: Buffer): Promise<boolean> {
    this.#send(option, data)
    const { type, body } = await this.#reply(option)
    if (type === OPTION_REPLY.ACK) return true
    if (type < OPTION_ERROR) throw protocolError(`reply ${type} to option ${option}`)
    mustNotWantTls(type, body)
    return false
  }

  /** @param what names the option in messages. @throws IO_ERROR when the server does not agree */
  async mustAgree(option: number, data: Buffer, what: string): Promise<void> {
    this.#send(option, data)
    const { type, body } = await this.#reply(option)
    if (type === OPTION_REPLY.ACK) return
    if (type < OPTION_ERROR) throw protocolError(`reply ${type} to option ${option}`)
    throw refusal(what, type, body)
  }

  /** The id of base:allocation; null where the server does not tell of holes. */
  async allocationOf(name: string): Promise<number | null> {
    const query = Buffer.from(ALLOCATION_CONTEXT)
    const data = Buffer.concat([
      u32(byteLength(name)),
      Buffer.from(name),
      u32(1),
      u32(query.length),
    ])
    this.#send(OPTION.SET_META_CONTEXT, Buffer.concat([data, query]))
    let id: number | null = null
    for (let i = 0; i < REPLIES_MAX; i++) {
      const { type, body } = await this.#reply(OPTION.SET_META_CONTEXT)
      if (type === OPTION_REPLY.ACK) return id
      if (type >= OPTION_ERROR) {
        mustNotWantTls(type, body)
        return null
      }
      if (type !== OPTION_REPLY.META_CONTEXT || body.length < 4) {
        throw protocolError(`reply ${type} to a question for ${ALLOCATION_CONTEXT}`)
      }
      if (body.toString('utf8', 4) === ALLOCATION_CONTEXT) id = body.readUInt32BE(0)
    }
    throw protocolError('replies without end')
  }

  /** Chooses the export. Requests follow. */
  async go(name: string): Promise<Omit<Export, 'structured' | 'allocation'>> {
    const wanted = Buffer.alloc(4)
    wanted.writeUInt16BE(1, 0)
    wanted.writeUInt16BE(INFO.BLOCK_SIZE, 2)
    this.#send(OPTION.GO, Buffer.concat([u32(byteLength(name)), Buffer.from(name), wanted]))
    let [size, flags, minBlock, maxPayload] = [-1, 0, 1, MAX_PAYLOAD]
    for (let i = 0; i < REPLIES_MAX; i++) {
      const { type, body } = await this.#reply(OPTION.GO)
      if (type >= OPTION_ERROR) throw refusal(`the export "${name}"`, type, body)
      if (type === OPTION_REPLY.ACK) {
        if (size < 0) throw protocolError('no size of the export')
        return { size, flags, minBlock, maxPayload }
      }
      if (type !== OPTION_REPLY.INFO || body.length < 2) {
        throw protocolError(`reply ${type} to the choice of an export`)
      }
      const what = body.readUInt16BE(0)
      if (what === INFO.EXPORT) {
        if (body.length !== 12) throw protocolError(`${body.length} bytes about the export`)
        size = Number(body.readBigUInt64BE(2))
        if (!Number.isSafeInteger(size)) throw protocolError(`an export of ${size} bytes`)
        flags = body.readUInt16BE(10)
      } else if (what === INFO.BLOCK_SIZE) {
        if (body.length !== 14) throw protocolError(`${body.length} bytes about block sizes`)
        minBlock = body.readUInt32BE(2)
        maxPayload = Math.min(MAX_PAYLOAD, body.readUInt32BE(10))
        const isPower = minBlock > 0 && (minBlock & (minBlock - 1)) === 0
        if (!isPower || minBlock > MIN_BLOCK_MAX || maxPayload < minBlock) {
          throw protocolError(`blocks of ${minBlock} bytes, ${maxPayload} at most`)
        }
        maxPayload -= maxPayload % minBlock
      }
    }
    throw protocolError('replies without end')
  }

  #send(option: number, data: Buffer): void {
    this.#socket.write(Buffer.concat([OPTION_MAGIC, u32(option), u32(data.length), data]))
  }

  async #reply(option: number): Promise<{ type: number; body: Buffer }> {
    const head = await this.#take(20)
    if (head.readBigUInt64BE(0) !== OPTION_REPLY_MAGIC) throw protocolError('no reply to an option')
    const about = head.readUInt32BE(8)
    if (about !== option) throw protocolError(`a reply to option ${about}, not ${option}`)
    const length = head.readUInt32BE(16)
    if (length > REPLY_MAX) throw protocolError(`a reply of ${length} bytes to option ${option}`)
    return { type: head.readUInt32BE(12), body: await this.#take(length) }
  }

  /** The next bytes. */
  async #take(length: number): Promise<Buffer> {
    for (;;) {
      if (this.#held.length >= length) {
        const found = this.#held.subarray(0, length)
        this.#held = this.#held.subarray(length)
        return found
      }
      if (this.#error !== null) throw this.#error
      await new Promise<void>(resolve => {
        this.#wake = resolve
      })
    }
  }
}

const byteLength = (text: string): number => Buffer.byteLength(text)

function u32(value: number): Buffer {
  const buffer = Buffer.alloc(4)
  buffer.writeUInt32BE(value)
  return buffer
}

/** A server that wants TLS refuses all other options: what it lacks is not known. */
function mustNotWantTls(type: number, body: Buffer): void {
  if (OPTION_ERRORS[type]?.[1] === 'it wants TLS') throw refusal('plain text', type, body)
}

function refusal(what: string, type: number, body: Buffer): ThinfsError {
  const [errno, why] = OPTION_ERRORS[type] ?? ['EIO', `error 0x${type.toString(16)}`]
  const said = body.toString('utf8').slice(0, 200)
  const detail = `the server refuses ${what}: ${why}${said === '' ? '' : ` (${said})`}`
  return new ThinfsError('IO_ERROR', detail, { errno })
}

/** Errors of connect(2) where there is no server. */
const NO_SERVER = new Set(['ECONNREFUSED', 'ENOENT'])

/** The error of a socket, with its errno. */
function connectError(err: Error): ThinfsError {
  if (err instanceof ThinfsError) return err
  const errno = errnoOf(err)
  const why = NO_SERVER.has(errno) ? ': no server listens there; is it running?' : ''
  return new ThinfsError('IO_ERROR', `${err.message}${why}`, { cause: err, errno })
}
