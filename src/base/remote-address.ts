import { ThinfsError } from './errors.js'
import { NBD_FORMS, type NbdAddress, parseNbdAddress } from './nbd-address.js'

/** An image of a Ceph cluster. */
export interface RbdAddress {
  kind: 'rbd'
  /** As `rbd:POOL/IMAGE`, for messages. */
  text: string
  pool: string
  /** Of the pool; empty: the default one. */
  namespace: string
  image: string
  /** Path of ceph.conf, which says where the cluster and the user's key are. */
  conf: string
  /** The user as Ceph names it, without `client.` in front. */
  user: string
}

/** A disk of another machine. */
export type RemoteAddress = NbdAddress | RbdAddress

/** The cluster of an image, and the user that asks for it. */
export type CephAccess = Pick<RbdAddress, 'conf' | 'user'>

export const CEPH_DEFAULTS: CephAccess = { conf: '/etc/ceph/ceph.conf', user: 'admin' }

/** The names of images that there are, for people. */
export const RBD_FORMS = 'POOL/IMAGE or POOL/NAMESPACE/IMAGE'
/** The addresses that there are, for people. */
export const REMOTE_FORMS = `rbd:POOL/IMAGE, ${NBD_FORMS}`

/** Names end with a slash, and with the @ of a snapshot. */
const RBD_NAME = /^([^/@\p{Cc}]+)\/(?:([^/@\p{Cc}]+)\/)?([^/@\p{Cc}]+)$/u

/**
 * Reads the name of an image, `POOL/IMAGE`.
 * @throws BAD_ARGUMENT with the forms that are allowed
 */
export function parseRbdName(name: string, access: CephAccess = CEPH_DEFAULTS): RbdAddress {
  const [, pool, namespace = '', image] = RBD_NAME.exec(name) ?? []
  if (pool === undefined || image === undefined) {
    throw new ThinfsError('BAD_ARGUMENT', `${name}: is no name of an image; ${RBD_FORMS}`)
  }
  const { conf, user } = access
  return { kind: 'rbd', text: `rbd:${name}`, pool, namespace, image, conf, user }
}

/** The name of an image as pool.yaml has it. */
export const rbdName = ({ pool, namespace, image }: RbdAddress): string =>
  [pool, namespace, image].filter(part => part !== '').join('/')

/**
 * The part that two addresses of one disk have in common, as far as that shows: the default port is
 * a port, and an export or an image is the same whoever asks for it.
 */
export function addressId(address: RemoteAddress): string {
  if (address.kind === 'rbd') return JSON.stringify(['rbd', address.conf, rbdName(address)])
  const { socket, exportName } = address
  const at = 'path' in socket ? [socket.path] : [socket.host.toLowerCase(), socket.port]
  return JSON.stringify(['nbd', ...at, exportName])
}

/** Whether a text is an address and no path: as `nbd://`, `rbd:`. */
export const isRemoteAddress = (text: string): boolean => /^(nbds?(\+unix)?:\/\/|rbd:)/.test(text)

/**
 * Whether a text was meant as an address, be it one that is known or not: as `nbd:HOST:PORT`,
 * `ndb://HOST/`. A file of such a name is `./nbd:HOST:PORT`.
 */
export const isLikeAddress = (text: string): boolean =>
  /^([a-z][a-z0-9+.-]*:\/\/|(nbds?|ndbs?|rbd|rdb)(\+[a-z]+)?:)/i.test(text)

/**
 * Reads the address of a disk of another machine.
 * @throws BAD_ARGUMENT with the forms that are allowed
 */
export const parseRemoteAddress = (text: string): RemoteAddress =>
  text.startsWith('rbd:') ? parseRbdName(text.slice('rbd:'.length)) : parseNbdAddress(text)
