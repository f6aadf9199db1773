import { constants } from 'node:os'
import { assert } from '../base/index.js'
import { NOTIFY_RESEND, OUT_HEADER } from './abi.js'
import type { FuseDevice } from './device.js'
import { Slots } from './slots.js'

const { EINVAL, ENODEV } = constants.errno

/**
 * Asks for the requests that an earlier process has read and not answered.
 * @returns false when the kernel cannot (before Linux 6.9); see own-descriptor.ts
 */
export function requestResend(device: FuseDevice): boolean {
  const notification = new Slots(OUT_HEADER.size, 1)
  notification.buffer.fill(0)
  notification.setU32(OUT_HEADER.at.len, OUT_HEADER.size)
  notification.setU32(OUT_HEADER.at.error, NOTIFY_RESEND)
  const result = device.write(notification.buffer, 0, OUT_HEADER.size)
  assert(result === 0 || result === -EINVAL || result === -ENODEV, `FUSE_NOTIFY_RESEND: ${result}`)
  return result === 0
}
