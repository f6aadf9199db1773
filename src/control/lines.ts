/**
 * JSON-RPC messages over a socket, one line of JSON each: `nc -U` and `jq` can speak it too.
 */
import type { Socket } from 'node:net'
import {
  AbstractMessageReader,
  AbstractMessageWriter,
  type DataCallback,
  Disposable,
  Message,
  type MessageReader,
  type MessageWriter,
} from 'vscode-jsonrpc/node'

const NEWLINE = 0x0a

/** Reads what comes. A line that is too long or not JSON ends the connection. */
export class LineReader extends AbstractMessageReader implements MessageReader {
  readonly #socket: Socket
  readonly #maxLength: number
  /** The beginning of a line whose end has not come yet. */
  #pieces: Buffer[] = []
  #length = 0
  /** Messages read so far. */
  messages = 0
  /**
   * Ids, as text, of requests that were read and not answered yet. The writer of answers removes
   * them.
   */
  readonly unanswered = new Set<string>()
  /** Called after each request. */
  onRequest: () => void = () => {}

  /** @param maxLength bytes of a line */
  constructor(socket: Socket, maxLength: number) {
    super()
    this.#socket = socket
    this.#maxLength = maxLength
    socket.on('error', err => this.fireError(err))
    socket.on('close', () => this.fireClose())
  }

  listen(callback: DataCallback): Disposable {
    const onData = (chunk: Buffer): void => {
      try {
        this.#take(chunk, callback)
      } catch (err) {
        this.#socket.destroy(err as Error)
      }
    }
    this.#socket.on('data', onData)
    return Disposable.create(() => this.#socket.off('data', onData))
  }

  #take(chunk: Buffer, callback: DataCallback): void {
    let begin = 0
    for (;;) {
      const end = chunk.indexOf(NEWLINE, begin)
      const piece = chunk.subarray(begin, end < 0 ? chunk.length : end)
      this.#length += piece.length
      if (this.#length > this.#maxLength) throw new Error(`message over ${this.#maxLength} bytes`)
      this.#pieces.push(piece)
      if (end < 0) return
      const message: Message = JSON.parse(Buffer.concat(this.#pieces).toString())
      this.#pieces = []
      this.#length = 0
      begin = end + 1
      this.messages++
      if (Message.isRequest(message)) this.#note(String(message.id))
      callback(message)
    }
  }

  /** Two requests of one id would be answered once: the later takes the place of the other. */
  #note(id: string): void {
    if (this.unanswered.has(id)) throw new Error(`request ${id} is not answered yet`)
    this.unanswered.add(id)
    this.onRequest()
  }
}

export class LineWriter extends AbstractMessageWriter implements MessageWriter {
  readonly #socket: Socket
  /** Called with the id of each request that was answered. */
  onAnswer: (id: string) => void = () => {}

  constructor(socket: Socket) {
    super()
    this.#socket = socket
  }

  async write(message: Message): Promise<void> {
    this.#socket.write(`${JSON.stringify(message)}\n`)
    if (!Message.isResponse(message)) return
    this.onAnswer(String(message.id))
  }

  end(): void {
    this.#socket.end()
  }
}
