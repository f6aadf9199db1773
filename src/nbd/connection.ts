/**
 * Requests and replies on one connection, any number in flight, answered in any order.
 *
 * What a server sends is taken as it comes, in pieces of any size; the bytes of a READ go to where
 * they are wanted, without being held in between, and many of them are received there.
 */
import type { Socket } from 'node:net'
import { pieceAt, slicePieces, ThinfsError } from '../base/index.js'
import {
  CHUNK,
  CHUNK_DONE,
  CHUNK_ERROR,
  CHUNK_MAGIC,
  CHUNK_SIZE,
  COMMAND,
  ERRNO,
  REQUEST_MAGIC,
  REQUEST_SIZE,
  SIMPLE_REPLY_MAGIC,
  SIMPLE_REPLY_SIZE,
} from './abi.js'
import { connectionLost, protocolError } from './errors.js'
import type { Negotiated } from './handshake.js'
import type { Request } from './request.js'

/** An error chunk, or the runs of a BLOCK_STATUS, may have so many bytes. */
const BODY_MAX = 8 * 1024 * 1024 + 4
const ERROR_MAX = 65_536
/** Bytes of heads that are made in one buffer. */
const HEADS_SIZE = 256 * REQUEST_SIZE
const HIGH = 0x1_0000_0000
/** A READ of so many bytes is received in its own memory: a copy would cost more than a call. */
const LARGE = 64 * 1024
/** Bytes that are received at a time while such a READ is in flight: little more than a head. */
const BETWEEN = 512

/** The owner of a connection, who has the requests. */
export interface RequestTable {
  /** The request of that number, as it was sent; undefined: none. */
  find(cookie: number): Request | undefined
  /** Its reply is whole. */
  ended(cookie: number, request: Request): void
  /** Called once: nothing more comes. */
  lost(err: ThinfsError): void
}

export class Connection {
  readonly #socket: Socket
  readonly #table: RequestTable
  readonly #structured: boolean
  readonly #allocation: number | null
  #isOver = false
  #isCorked = false
  readonly #uncork = (): void => {
    this.#isCorked = false
    if (this.#isOver) return
    this.#writeHeads()
    this.#socket.uncork()
  }
  /** The heads of requests, of which those [begin, end) are still to be written. */
  #heads = Buffer.allocUnsafeSlow(HEADS_SIZE)
  #headsBegin = 0
  #headsEnd = 0

  // Where the reply that is being taken stands: a head, then a small body or bytes of a READ.
  readonly #head = Buffer.alloc(CHUNK_SIZE + 8)
  #headFill = 0
  #headWanted = SIMPLE_REPLY_SIZE
  #cookie = 0
  #request: Request | null = null
  #isDone = false
  #chunk = 0
  #body: Buffer | null = null
  #bodyFill = 0
  /** Bytes of a READ that are still to come, and where in its buffer they go. */
  #dataLeft = 0
  #dataAt = 0
  /** READs in flight of LARGE bytes and more. */
  #nrLarge = 0

  constructor({ socket, incoming, rest, export: chosen }: Negotiated, table: RequestTable) {
    this.#socket = socket
    this.#table = table
    this.#structured = chosen.structured
    this.#allocation = chosen.allocation
    incoming.take = chunk => this.#got(chunk)
    incoming.target = usual => this.#target(usual)
    if (rest.length > 0) process.nextTick(() => this.#got(rest))
    socket.on('error', err => this.#lost(connectionLost(err)))
    socket.on('end', () => this.#lost(connectionLost()))
    socket.on('close', () => this.#lost(connectionLost()))
    socket.resume()
  }

  /** Sends a request. Those of one turn of the event loop go together. */
  send(cookie: number, request: Request): void {
    if (this.#isOver) return
    if (!this.#isCorked) {
      this.#isCorked = true
      this.#socket.cork()
      process.nextTick(this.#uncork)
    }
    if (this.#headsEnd === HEADS_SIZE) {
      this.#writeHeads()
      // The socket may not have sent them yet.
      this.#heads = Buffer.allocUnsafeSlow(HEADS_SIZE)
      this.#headsBegin = this.#headsEnd = 0
    }
    const { command, flags, offset, length, data } = request
    if (isLarge(request)) this.#nrLarge++
    writeHead(this.#heads, this.#headsEnd, command, flags, cookie, offset, length)
    this.#headsEnd += REQUEST_SIZE
    if (data === null) return
    this.#writeHeads()
    for (const piece of data) this.#socket.write(piece)
  }

  #writeHeads(): void {
    if (this.#headsEnd === this.#headsBegin) return
    this.#socket.write(this.#heads.subarray(this.#headsBegin, this.#headsEnd))
    this.#headsBegin = this.#headsEnd
  }

  /** Says goodbye, and ends. Requests in flight are the caller's. */
  close(): void {
    if (this.#isOver) return
    this.#isOver = true
    this.#writeHeads()
    const head = Buffer.allocUnsafe(REQUEST_SIZE)
    writeHead(head, 0, COMMAND.DISCONNECT, 0, 0, 0, 0)
    this.#socket.end(head)
    // A server that does not close its end keeps no process alive.
    this.#socket.unref()
  }

  /** Ends without a word. */
  destroy(): void {
    this.#isOver = true
    this.#socket.destroy()
  }

  #lost(err: ThinfsError): void {
    if (this.#isOver) return
    this.destroy()
    this.#table.lost(err)
  }

  /** @returns the memory that the next bytes are received in */
  #target(usual: Uint8Array): Uint8Array {
    if (this.#isOver || this.#nrLarge === 0 || this.#body !== null) return usual
    if (this.#dataLeft === 0) return usual.subarray(0, BETWEEN)
    return pieceAt(this.#request!.into!, this.#dataAt).subarray(0, this.#dataLeft)
  }

  #got(chunk: Uint8Array): void {
    try {
      for (let at = 0; at < chunk.length && !this.#isOver; ) at += this.#take(chunk, at)
    } catch (err) {
      if (!(err instanceof ThinfsError)) throw err
      this.#lost(err)
    }
  }

  /** Takes some bytes of a chunk from `at`. @returns how many */
  #take(chunk: Uint8Array, at: number): number {
    if (this.#dataLeft > 0) {
      const into = pieceAt(this.#request!.into!, this.#dataAt)
      const size = Math.min(this.#dataLeft, into.length, chunk.length - at)
      const isThere = chunk.buffer === into.buffer && chunk.byteOffset + at === into.byteOffset
      if (!isThere) into.set(chunk.subarray(at, at + size))
      this.#dataAt += size
      this.#dataLeft -= size
      if (this.#dataLeft === 0) this.#endReply()
      return size
    }
    if (this.#body !== null) {
      const size = Math.min(this.#body.length - this.#bodyFill, chunk.length - at)
      this.#body.set(chunk.subarray(at, at + size), this.#bodyFill)
      this.#bodyFill += size
      if (this.#bodyFill === this.#body.length) {
        this.#takeBody(this.#body)
        this.#endReply()
      }
      return size
    }
    const size = Math.min(this.#headWanted - this.#headFill, chunk.length - at)
    this.#head.set(chunk.subarray(at, at + size), this.#headFill)
    this.#headFill += size
    if (this.#headFill === this.#headWanted) this.#takeHead()
    return size
  }

  #takeHead(): void {
    const magic = this.#head.readUInt32BE(0)
    switch (this.#headWanted) {
      case SIMPLE_REPLY_SIZE:
        if (magic === CHUNK_MAGIC && this.#structured) this.#headWanted = CHUNK_SIZE
        else if (magic === SIMPLE_REPLY_MAGIC) this.#takeSimple()
        else throw protocolError(`0x${magic.toString(16)} where a reply begins`)
        return
      case CHUNK_SIZE:
        this.#takeChunk()
        return
      default:
        this.#takeDataOffset()
    }
  }

  #takeSimple(): void {
    const request = this.#find()
    this.#isDone = true
    const error = this.#head.readUInt32BE(4)
    if (error !== 0) request.error = errorOf(error, '')
    else if (request.command === COMMAND.BLOCK_STATUS) {
      throw protocolError('a simple reply to BLOCK_STATUS')
    } else if (request.command === COMMAND.READ) {
      if (this.#structured)
        throw protocolError('a simple reply to READ, where chunks were agreed on')
      request.came(0, request.length)
      this.#dataAt = 0
      this.#dataLeft = request.length
      return
    }
    this.#endReply()
  }

  #takeChunk(): void {
    const request = this.#find()
    this.#isDone = (this.#head.readUInt16BE(4) & CHUNK_DONE) !== 0
    this.#chunk = this.#head.readUInt16BE(6)
    const length = this.#head.readUInt32BE(16)
    if (this.#chunk === CHUNK.NONE) {
      if (length !== 0 || !this.#isDone) throw protocolError('an empty chunk that is none')
      this.#endReply()
      return
    }
    if (this.#chunk === CHUNK.OFFSET_DATA) {
      if (request.command !== COMMAND.READ || length <= 8 || length - 8 > request.length) {
        throw protocolError(`${length} bytes of data that nobody asked for`)
      }
      this.#headWanted = CHUNK_SIZE + 8
      return
    }
    const most = (this.#chunk & CHUNK_ERROR) !== 0 ? ERROR_MAX : BODY_MAX
    if (length === 0 || length > most) throw protocolError(`a chunk of ${length} bytes`)
    this.#body = Buffer.allocUnsafe(length)
    this.#bodyFill = 0
  }

  /** The offset that begins an OFFSET_DATA chunk. */
  #takeDataOffset(): void {
    const request = this.#request!
    const length = this.#head.readUInt32BE(16) - 8
    const from = this.#placeOf(request, this.#head, CHUNK_SIZE, length)
    request.came(from, from + length)
    this.#dataAt = from
    this.#dataLeft = length
  }

  /** Where in a READ the offset at `at` of `buffer` is. */
  #placeOf(request: Request, buffer: Buffer, at: number, length: number): number {
    const offset = buffer.readUInt32BE(at) * HIGH + buffer.readUInt32BE(at + 4)
    const from = offset - request.offset
    if (from < 0 || length <= 0 || from + length > request.length) {
      throw protocolError(`${length} bytes at ${offset}, which are not part of the request`)
    }
    return from
  }

  #takeBody(body: Buffer): void {
    const request = this.#request!
    if ((this.#chunk & CHUNK_ERROR) !== 0) {
      const size = body.length < 6 ? 0 : body.readUInt16BE(4)
      if (body.length < 6 + size) throw protocolError('an error that is cut short')
      request.error ??= errorOf(body.readUInt32BE(0), body.toString('utf8', 6, 6 + size))
    } else if (this.#chunk === CHUNK.OFFSET_HOLE && request.command === COMMAND.READ) {
      if (body.length !== 12) throw protocolError(`a hole in ${body.length} bytes`)
      const length = body.readUInt32BE(8)
      const from = this.#placeOf(request, body, 0, length)
      for (const piece of slicePieces(request.into!, from, from + length)) piece.fill(0)
      request.came(from, from + length)
    } else if (this.#chunk === CHUNK.BLOCK_STATUS && request.command === COMMAND.BLOCK_STATUS) {
      takeRuns(request, body, this.#allocation)
    } else throw protocolError(`a chunk of type ${this.#chunk} for command ${request.command}`)
  }

  #find(): Request {
    // The high half of a cookie is never used: it comes back as it was sent.
    const high = this.#head.readUInt32BE(8)
    this.#cookie = this.#head.readUInt32BE(12)
    const request = high === 0 ? this.#table.find(this.#cookie) : undefined
    if (request === undefined) throw protocolError('a reply to a request that was not made')
    this.#request = request
    return request
  }

  /** A simple reply or a chunk is whole; the next begins. */
  #endReply(): void {
    const request = this.#request!
    this.#request = null
    this.#body = null
    this.#headFill = 0
    this.#headWanted = SIMPLE_REPLY_SIZE
    if (!this.#isDone) return
    if (request.error?.errno === 'ESHUTDOWN') {
      // A server that is being stopped waits for its clients to leave. Requests are sent again to
      // the next one.
      this.#lost(request.error)
      return
    }
    if (request.error === null) {
      if (request.command === COMMAND.READ && !request.isWhole) {
        throw protocolError('a reply without all the bytes, or with some of them twice')
      }
      if (request.command === COMMAND.BLOCK_STATUS && request.runs.length === 0) {
        throw protocolError('no run in a reply to BLOCK_STATUS')
      }
    }
    if (isLarge(request)) this.#nrLarge--
    this.#table.ended(this.#cookie, request)
  }
}

const isLarge = ({ command, length }: Request): boolean =>
  command === COMMAND.READ && length >= LARGE

function takeRuns(request: Request, body: Buffer, allocation: number | null): void {
  if (body.length < 12 || (body.length - 4) % 8 !== 0) {
    throw protocolError(`runs in ${body.length} bytes`)
  }
  if (body.readUInt32BE(0) !== allocation) return
  let left = request.length
  for (let at = 4; at < body.length; at += 8) {
    const length = body.readUInt32BE(at)
    if (length === 0) throw protocolError('a run of no bytes')
    // The last one may go on behind what was asked for.
    if (left <= 0) throw protocolError('runs of more than was asked for')
    request.runs.push({ length: Math.min(length, left), flags: body.readUInt32BE(at + 4) })
    left -= length
  }
}

function errorOf(number: number, said: string): ThinfsError {
  const errno = ERRNO[number] ?? 'EIO'
  const words = said === '' ? '' : ` (${said.slice(0, 200)})`
  return new ThinfsError('IO_ERROR', `${errno}: the NBD server${words}`, { errno })
}

/** Writes the head of a request to `head` at `at`. */
function writeHead(
  head: Buffer,
  at: number,
  command: number,
  flags: number,
  cookie: number,
  offset: number,
  length: number,
): void {
  head.writeUInt32BE(REQUEST_MAGIC, at)
  head.writeUInt16BE(flags, at + 4)
  head.writeUInt16BE(command, at + 6)
  head.writeUInt32BE(0, at + 8)
  head.writeUInt32BE(cookie, at + 12)
  head.writeUInt32BE(Math.floor(offset / HIGH), at + 16)
  head.writeUInt32BE(offset % HIGH, at + 20)
  head.writeUInt32BE(length, at + 24)
}
