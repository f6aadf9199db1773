import { isLinuxSince } from '../base/index.js'
import { native } from '../native.js'

/** The first kernel with FUSE_NOTIFY_RESEND. Source: linux/fuse.h. */
export const RESENDS_SINCE = [6, 9] as const

/**
 * The descriptor by which an engine reads requests. The connection's own, if the kernel sends again
 * what an engine that dies has not answered. Older kernels keep that for the connection's
 * descriptor, which lives on, and its callers would wait until unmounting; what was read by a
 * descriptor of the engine's alone fails with ECONNABORTED when the engine dies.
 * @param fd the connection's
 * @param resends whether the kernel sends requests again; default: by its version
 */
export function ownDescriptor(fd: number, resends = isLinuxSince(RESENDS_SINCE)): number {
  if (resends) return fd
  try {
    return native.fuse_clone(fd)
  } catch {
    return fd // This user may not open /dev/fuse: callers wait until unmounting.
  }
}
