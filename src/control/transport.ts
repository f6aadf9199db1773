/** The consequences of a transport's capabilities for daemon and engine. */
import { ThinfsError } from '../base/index.js'
import type { PoolConfig } from '../config/index.js'
import { DEV, type Negotiated, TRANSPORTS, type Transport, transportOf } from '../fuse/index.js'
import type { PoolStatus } from '../volumes/index.js'

type TransportStatus = Pick<NonNullable<PoolStatus['mount']>, 'transport' | 'whyDev'>

/** Before the name in an option of `mount -o`. */
const OPTION = 'transport='

/** Options of `mount -o` that choose a transport. */
export const TRANSPORT_OPTIONS: readonly string[] = Object.keys(TRANSPORTS).map(
  name => `${OPTION}${name}`,
)

/**
 * The transport that a pool is to be mounted with: what `mount -o` says wins, and of that what it
 * says last.
 * @param mountOptions of those that choose one, each is of TRANSPORT_OPTIONS
 */
export function wantedTransport(mountOptions: readonly string[], config: PoolConfig): Transport {
  const option = mountOptions.findLast(option => option.startsWith(OPTION))
  const name = option === undefined ? config.transport : option.slice(OPTION.length)
  return TRANSPORTS[name as keyof typeof TRANSPORTS]
}

/** @param negotiated null while the mount is being made */
export function transportStatus(negotiated: Negotiated | null): TransportStatus {
  return {
    transport: (negotiated === null ? DEV : transportOf(negotiated)).name,
    whyDev: negotiated?.whyDev ?? null,
  }
}

/** Whether no other engine can go on where the one that serves the mount was. */
export const diesWithItsEngine = (negotiated: Negotiated | null): boolean =>
  negotiated !== null && !transportOf(negotiated).capabilities.outlivesEngine

/** @throws NOT_SUPPORTED where no other engine can take the mount over */
export function refuseToMove(negotiated: Negotiated | null): void {
  if (!diesWithItsEngine(negotiated)) return
  const { name } = transportOf(negotiated!)
  const detail = `transport ${name}: no other engine can take the mount over; thinfs umount, then mount`
  throw new ThinfsError('NOT_SUPPORTED', detail)
}
