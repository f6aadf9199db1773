/** What follows for the processes from how the kernel's requests come. */
import { ThinfsError } from '../base/index.js'
import { type Negotiated, transportOf } from '../fuse/index.js'
import type { PoolStatus } from '../volumes/index.js'

type TransportStatus = Pick<NonNullable<PoolStatus['mount']>, 'transport' | 'whyDev'>

/** @param negotiated null while the mount is being made */
export function transportStatus(negotiated: Negotiated | null): TransportStatus {
  return {
    transport: negotiated === null ? 'dev' : transportOf(negotiated),
    whyDev: negotiated?.whyDev ?? null,
  }
}

/** Whether requests end with the engine that has them: no other can go on where it was. */
export const diesWithItsEngine = (negotiated: Negotiated | null): boolean =>
  negotiated !== null && transportOf(negotiated) === 'uring'

/** @throws NOT_SUPPORTED where no other engine can take the mount over */
export function refuseToMove(negotiated: Negotiated | null): void {
  if (!diesWithItsEngine(negotiated)) return
  const detail =
    'transport uring: no other engine can take the mount over; thinfs umount, then mount'
  throw new ThinfsError('NOT_SUPPORTED', detail)
}
