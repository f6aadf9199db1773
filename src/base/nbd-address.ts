import { resolve } from 'node:path'
import { ThinfsError } from './errors.js'

/** The address of an export. */
export interface NbdAddress {
  kind: 'nbd'
  /** As it was written; for messages. */
  text: string
  socket: { path: string } | { host: string; port: number }
  /** Empty: the server's default export. */
  exportName: string
  /** Null: in plain text. */
  tls: {
    /** The name that the server's certificate has to be for. */
    host: string
    /**
     * The folder with ca-cert.pem and, where the server wants to know who asks, client-cert.pem and
     * client-key.pem; null: the authorities that the machine trusts.
     */
    certificates: string | null
  } | null
}

/** IANA's port of the protocol. */
const PORT = 10809
/** The addresses that there are, for people. */
export const NBD_FORMS =
  'nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=PATH; nbds for TLS, with ?tls-certificates=FOLDER'
const PARAMETERS = new Set(['socket', 'tls-certificates', 'tls-hostname'])

/** An address for people: nobody should find a password in a log. */
export const withoutPassword = (text: string): string => text.replace(/(:\/\/)[^/]*@/, '$1…@')

/**
 * Reads the address of an export.
 * Source: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/uri.md
 * @throws BAD_ARGUMENT with the forms that are allowed
 */
export function parseNbdAddress(text: string): NbdAddress {
  const refuse = (why: string): ThinfsError =>
    new ThinfsError('BAD_ARGUMENT', `${withoutPassword(text)}: ${why}; ${NBD_FORMS}`)
  // The class URL gives paths and hosts their meaning for schemes of the web only.
  const scheme = /^(nbds?)(\+unix)?:\/\//.exec(text)
  if (scheme === null) throw refuse('is no address of an export')
  const isUnix = scheme[2] !== undefined
  let url: URL
  let exportName: string
  try {
    url = new URL(text)
    exportName = decodeURIComponent(url.pathname.replace(/^\//, ''))
  } catch {
    throw refuse('is no address of an export')
  }
  for (const name of url.searchParams.keys()) {
    if (!PARAMETERS.has(name)) throw refuse(`${name} is not known`)
  }
  if (url.username !== '' || url.password !== '') throw refuse('has a user name, or a password')
  const path = url.searchParams.get('socket')
  const host = url.hostname.replace(/^\[(.*)\]$/, '$1')
  if (isUnix && path === null) throw refuse('has no socket')
  if (isUnix && host !== '') throw refuse('has a host beside the socket')
  if (!isUnix && path !== null) throw refuse('has a socket beside the host')
  if (!isUnix && host === '') throw refuse('has no host')
  const isTls = scheme[1] === 'nbds'
  const certificates = url.searchParams.get('tls-certificates')
  const tlsHost = url.searchParams.get('tls-hostname')
  if (!isTls && (certificates ?? tlsHost) !== null) throw refuse('has certificates without TLS')
  return {
    kind: 'nbd',
    text,
    socket: isUnix ? { path: path! } : { host, port: url.port === '' ? PORT : Number(url.port) },
    exportName,
    tls: isTls ? { host: tlsHost ?? (isUnix ? 'localhost' : host), certificates } : null,
  }
}

/** The address with its paths, of the socket and of the certificates, counted from `folder`. */
export function inFolder(address: NbdAddress, folder: string): NbdAddress {
  const { socket, tls } = address
  const certificates = tls?.certificates ?? null
  return {
    ...address,
    ...('path' in socket && { socket: { path: resolve(folder, socket.path) } }),
    ...(certificates !== null && {
      tls: { ...tls!, certificates: resolve(folder, certificates) },
    }),
  }
}
