/**
 * Whether this machine has what thinfs needs, for the user who asks: each thing is tried where that
 * is possible, and not deduced from versions.
 */
import type { Finding } from './finding.js'
import {
  lookAtLockedMemory,
  lookAtLoop,
  lookAtResend,
  lookAtUring,
  lookAtVersion,
  tryIoFlusher,
  tryRing,
} from './kernel.js'
import { lookAtAllowOther, lookAtDevice, tryMount, tryNamespace } from './mounting.js'
import { lookAtPlace } from './place.js'
import { lookAtPrograms } from './programs.js'

export type { Finding, State } from './finding.js'

/**
 * All there is to say, what a mount needs first. Leaves nothing behind.
 * @param file the pool.yaml
 */
export async function examine(folder: string, file: string | null): Promise<Finding[]> {
  const namespace = await tryNamespace()
  return [
    lookAtVersion(),
    lookAtDevice(),
    await tryMount(namespace.state === 'ok'),
    ...lookAtPlace(folder, file),
    lookAtAllowOther(),
    namespace,
    lookAtResend(),
    lookAtLoop(),
    tryIoFlusher(),
    tryRing(),
    lookAtUring(),
    lookAtLockedMemory(),
    ...(await lookAtPrograms()),
  ]
}
