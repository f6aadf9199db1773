/**
 * The page and the metrics of a pool by HTTP. Everything can be read and nothing changed.
 *
 * It listens where only this machine, or whoever may open a socket, can reach it. Of this machine's
 * users those can read it who know a token; the page without it has nothing of the pool. A browser
 * gives a page of elsewhere nothing of it: no answer allows other origins, and a request for
 * another host's name is refused.
 */
import { timingSafeEqual } from 'node:crypto'
import { once } from 'node:events'
import { lstatSync, readFileSync, rmSync } from 'node:fs'
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import { createRequire } from 'node:module'
import { type AddressInfo, connect } from 'node:net'
import { errnoOf, ThinfsError } from '../base/index.js'
import { isOwnHost, type Listen } from './listen.js'
import { Watch, type WatchedPool } from './watch.js'

const require = createRequire(import.meta.url)
/** Files of the page: what they are, and where `npm run build` puts them. */
const FILES: Readonly<Record<string, { type: string; file: string }>> = {
  '/': { type: 'text/html; charset=utf-8', file: '#page/index.html' },
  '/page.js': { type: 'text/javascript; charset=utf-8', file: '#page/page.js' },
  '/page.css': { type: 'text/css; charset=utf-8', file: '#page/page.css' },
}

const HEADERS = {
  'Content-Security-Policy':
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; " +
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
  'X-Content-Type-Options': 'nosniff',
  'Referrer-Policy': 'no-referrer',
  'Cross-Origin-Resource-Policy': 'same-origin',
  'Cache-Control': 'no-store',
}

/** Pages that may follow the pool at a time, and bytes that wait for a slow one. */
const FOLLOWERS_MAX = 32
const BACKLOG_MAX = 1024 * 1024

export interface MonitorOptions {
  /** Path of its pool.yaml. */
  pool: string
  listen: Listen
  /**
   * The token that a request for anything of the pool has to have; null: everybody who reaches it
   * may ask.
   */
  token: string | null
  /** Connects to its daemon; null while it is not mounted. */
  connect(): Promise<WatchedPool | null>
}

export class Monitor {
  readonly #pool: string
  readonly #server: Server
  readonly #watch: Watch
  readonly #followers = new Set<ServerResponse>()
  readonly #running: Promise<void>
  readonly #listen: Listen
  readonly #token: string | null

  /**
   * Listens, and watches the pool from now on.
   * @throws IO_ERROR when it cannot listen there
   */
  static async start(options: MonitorOptions): Promise<Monitor> {
    const monitor = new Monitor(options)
    try {
      await monitor.#begin()
    } catch (err) {
      await monitor.close()
      throw err
    }
    return monitor
  }

  private constructor({ pool, listen, token, connect }: MonitorOptions) {
    this.#pool = pool
    this.#token = token
    this.#listen = listen
    this.#watch = new Watch(connect, {
      rates: rates => this.#tell('rates', rates),
      happened: event => this.#tell('happened', event),
    })
    this.#server = createServer((request, response) => {
      this.#answer(request, response).catch(err => {
        if (response.headersSent) response.destroy()
        else respond(response, 500, 'text/plain', `${(err as Error).message}\n`)
      })
    })
    this.#running = this.#watch.run()
  }

  /**
   * Its address: a URL, or the path of its socket. A token is behind the #, which browsers keep to
   * themselves.
   */
  get address(): string {
    if ('path' in this.#listen) return `unix:${this.#listen.path}`
    const { address, family, port } = this.#server.address() as AddressInfo
    const host = family === 'IPv6' ? `[${address}]` : address
    return `http://${host}:${port}/${this.#token === null ? '' : `#token=${this.#token}`}`
  }

  async close(): Promise<void> {
    this.#watch.close()
    for (const response of this.#followers) response.destroy()
    this.#server.closeAllConnections()
    this.#server.close()
    await this.#running
  }

  async #begin(): Promise<void> {
    const listen = this.#listen
    const where = 'path' in listen ? listen.path : `${listen.host}:${listen.port}`
    if ('path' in listen) await removeDeadSocket(listen.path)
    // The socket's mode comes of the mask: it is its owner's.
    const mask = process.umask(0o177)
    try {
      this.#server.listen(listen)
    } finally {
      process.umask(mask)
    }
    try {
      await once(this.#server, 'listening')
    } catch (err) {
      const errno = errnoOf(err)
      const isFile = 'path' in listen && !isSocket(listen.path)
      const inUse = isFile ? 'is no socket' : 'somebody listens there already'
      const why = errno === 'EADDRINUSE' ? inUse : errno
      throw new ThinfsError('IO_ERROR', `${where}: ${why}`, { cause: err, errno })
    }
  }

  async #answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const { method, headers } = request
    if (!('path' in this.#listen) && !isOwnHost(headers.host)) {
      respond(response, 421, 'text/plain', 'this is served to this machine by its own names\n')
      return
    }
    if (method !== 'GET' && method !== 'HEAD') {
      response.setHeader('Allow', 'GET, HEAD')
      respond(response, 405, 'text/plain', 'nothing can be changed here\n')
      return
    }
    const { pathname, searchParams } = new URL(request.url ?? '/', 'http://localhost')
    const asset = Object.hasOwn(FILES, pathname) ? FILES[pathname] : undefined
    if (asset !== undefined) {
      respond(response, 200, asset.type, readFileSync(require.resolve(asset.file)))
      return
    }
    if (!this.#mayAsk(headers.authorization, searchParams.get('token'))) {
      response.setHeader('WWW-Authenticate', 'Bearer')
      respond(response, 401, 'text/plain', 'thinfs serve prints the address that has the token\n')
      return
    }
    switch (pathname) {
      case '/metrics': {
        const { CONTENT_TYPE, metricsText, scrape } = await import('./metrics.js')
        const scraped = await this.#watch.ask(scrape)
        respond(response, 200, CONTENT_TYPE, await metricsText(this.#pool, scraped))
        return
      }
      case '/api/state':
        respondJson(response, await this.#state())
        return
      case '/api/map':
        respondJson(response, await this.#watch.blockMap())
        return
      case '/api/live':
        this.#follow(response)
        return
      default:
        respond(response, 404, 'text/plain', 'not found\n')
    }
  }

  /** @param asked of the query, for what sends no headers: EventSource */
  #mayAsk(authorization: string | undefined, asked: string | null): boolean {
    if (this.#token === null) return true
    const [, bearer] = /^Bearer +(\S+)$/i.exec(authorization ?? '') ?? []
    return [bearer, asked].some(given => given != null && isSame(given, this.#token!))
  }

  async #state(): Promise<object> {
    const watch = this.#watch
    // A daemon whose engines fail has a status and no more.
    const status = await watch.ask(pool => pool.status())
    const volumes = status === null ? null : await watch.ask(pool => pool.list({}))
    const { history, events, rates } = watch
    return {
      pool: this.#pool,
      status,
      volumes: volumes ?? [],
      ...{ rates, history: history.samples, events },
    }
  }

  /** Server-sent events: `rates` every second, `happened` as it comes. */
  #follow(response: ServerResponse): void {
    if (this.#followers.size >= FOLLOWERS_MAX) {
      respond(response, 503, 'text/plain', 'too many pages are open\n')
      return
    }
    response.writeHead(200, { ...HEADERS, 'Content-Type': 'text/event-stream' })
    response.write('retry: 1000\n\n')
    this.#followers.add(response)
    this.#watch.live = true
    response.on('close', () => {
      this.#followers.delete(response)
      this.#watch.live = this.#followers.size > 0
    })
  }

  #tell(event: string, data: unknown): void {
    for (const response of this.#followers) {
      // It connects again, and begins with what is so then.
      if (response.writableLength > BACKLOG_MAX) response.destroy()
      else response.write(`event: ${event}\ndata: ${JSON.stringify(data)}\n\n`)
    }
  }
}

/** Takes as long whatever the two have in common. */
function isSame(given: string, wanted: string): boolean {
  const [one, other] = [Buffer.from(given), Buffer.from(wanted)]
  return one.length === other.length && timingSafeEqual(one, other)
}

function respond(
  response: ServerResponse,
  status: number,
  type: string,
  body: string | Uint8Array,
): void {
  response.writeHead(status, {
    ...HEADERS,
    'Content-Type': type,
    'Content-Length': Buffer.byteLength(body),
  })
  response.end(body)
}

const respondJson = (response: ServerResponse, value: unknown): void =>
  respond(response, 200, 'application/json', JSON.stringify(value))

const isSocket = (path: string): boolean =>
  lstatSync(path, { throwIfNoEntry: false })?.isSocket() === true

/** Removes a socket on which nobody listens, as a killed process leaves it. */
async function removeDeadSocket(path: string): Promise<void> {
  // connect(2) refuses a file of another kind with the same errno.
  if (!isSocket(path)) return
  const socket = connect(path)
  try {
    await once(socket, 'connect')
  } catch (err) {
    if (errnoOf(err) === 'ECONNREFUSED') rmSync(path, { force: true })
  } finally {
    socket.destroy()
  }
}
