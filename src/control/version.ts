/**
 * The version of what the processes of thinfs say to each other.
 *
 * The program on disk may be replaced while a pool is mounted, so a command may meet a daemon, and
 * an engine a daemon, of another thinfs. They work together as long as the version is the same.
 */
import { ThinfsError } from '../base/index.js'

/**
 * Raised when a message changes its meaning or goes, never for another field or another message.
 */
export const PROTOCOL = 2

/** The version of processes that state none: they are older than the number. */
const FIRST_PROTOCOL = 1

/**
 * @param theirs the version that the other end says it speaks
 * @param who the other end, for people
 * @param cure what to do where the two do not fit
 * @throws VERSION_MISMATCH when it is not ours
 */
export function mustSpeakOurs(theirs: number | undefined, who: string, cure: string): void {
  const version = theirs ?? FIRST_PROTOCOL
  if (version === PROTOCOL) return
  const age = version < PROTOCOL ? 'an older' : 'a newer'
  const what = `${who} is of ${age} thinfs, which speaks version ${version} of the protocol`
  throw new ThinfsError('VERSION_MISMATCH', `${what}, not ${PROTOCOL}: ${cure}`)
}
