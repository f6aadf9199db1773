/** The user namespace of this process. Source: user_namespaces(7). */
import { read } from './proc.js'

/** Whether this process is in a user namespace that has no id for some users of the machine. */
export const isInUserNamespace = (): boolean =>
  !/^\s*0\s+0\s+4294967295\s*$/.test(read('/proc/self/uid_map'))

/** The id that the kernel shows for a user without an id in a namespace. */
const UNKNOWN_USER = 65534

/**
 * Whether the kernel shows this process's own user so, too: its files look like those of strangers.
 */
export const isUserUnknown = (): boolean =>
  process.geteuid!() === UNKNOWN_USER && isInUserNamespace()
