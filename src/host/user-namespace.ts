/** The user namespace of this process. Source: user_namespaces(7). */
import { read } from './proc.js'

/** Whether there are users of the machine that this process's user namespace has no id for. */
export const isInUserNamespace = (): boolean =>
  !/^\s*0\s+0\s+4294967295\s*$/.test(read('/proc/self/uid_map'))

/** The id that the kernel shows for a user without an id in a namespace. */
const UNKNOWN_USER = 65534

/**
 * Whether this process's own user is shown as those are, so that his files cannot be told from
 * theirs.
 */
export const isUserUnknown = (): boolean =>
  process.geteuid!() === UNKNOWN_USER && isInUserNamespace()
