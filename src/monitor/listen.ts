import { isIP } from 'node:net'
import { resolve } from 'node:path'
import { ThinfsError } from '../base/index.js'

/**
 * The place at which `thinfs serve` listens: an address of this machine alone, or a unix socket.
 */
export type Listen = { host: string; port: number } | { path: string }

/** Bytes of a path in struct sockaddr_un, without the zero at its end. */
const SOCKET_PATH_MAX = 107

/**
 * @param text 127.0.0.1:9713, [::1]:9713, localhost:9713 or unix:/run/thinfs.sock
 * @throws BAD_ARGUMENT also for an address that other machines could reach
 */
export function listenOf(text: string): Listen {
  if (text.startsWith('unix:') && text.length > 'unix:'.length) {
    const path = resolve(text.slice('unix:'.length))
    if (Buffer.byteLength(path) > SOCKET_PATH_MAX) {
      const detail = `--listen ${text}: the path of a socket has ${SOCKET_PATH_MAX} bytes at most`
      throw new ThinfsError('BAD_ARGUMENT', detail)
    }
    return { path }
  }
  const [, bracketed, plain, digits] = /^(?:\[([^\]]+)\]|([^:]+)):(\d{1,5})$/.exec(text) ?? []
  const host = bracketed ?? plain
  const port = Number(digits)
  if (host === undefined || port > 65_535) {
    throw new ThinfsError('BAD_ARGUMENT', `--listen ${text}: HOST:PORT or unix:PATH`)
  }
  if (!isLoopback(host)) {
    const cure = 'a loopback address or unix:PATH; a proxy in front of it may be seen by others'
    throw new ThinfsError('BAD_ARGUMENT', `--listen ${text}: anybody could read it there: ${cure}`)
  }
  return { host, port }
}

/** Whether only this machine reaches it. */
const isLoopback = (host: string): boolean =>
  host === 'localhost' || host === '::1' || (isIP(host) === 4 && host.startsWith('127.'))

/**
 * Whether a request's Host header names this machine: a page of elsewhere whose name leads here, as
 * of a DNS that was rebound, has its own name there.
 */
export function isOwnHost(header: string | undefined): boolean {
  const [, bracketed, plain] = /^(?:\[([^\]]+)\]|([^:]+))(?::\d+)?$/.exec(header ?? '') ?? []
  return isLoopback(bracketed ?? plain ?? '')
}
