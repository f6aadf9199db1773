/**
 * Names that a volume may have: those of a file in the mount, less the ones thinfs gives itself.
 */
import { NAME_MAX, ThinfsError } from '../base/index.js'

/** The name of a thin device that nothing names: volumes of other programs' pools. */
export const UNNAMED_PREFIX = 'thin-'

const FORBIDDEN: readonly [pattern: RegExp, found: string][] = [
  [/^$/, 'it is empty'],
  [/^\.\.?$/, 'it means a folder'],
  [/\//, "it has a '/'"],
  [/\p{Cc}/u, 'it has a control character'],
  [/\p{Cs}/u, 'it is not valid Unicode'],
  [/^\.thinfs/, "names that begin with '.thinfs' are reserved"],
  [new RegExp(`^${UNNAMED_PREFIX}\\d+$`), 'that names the device with this id when it has no name'],
]

/** @throws BAD_NAME saying what is wrong and what is allowed, when a volume cannot have the name */
export function checkVolumeName(name: string): void {
  const found = whyNotAName(name)
  if (found) throw new ThinfsError('BAD_NAME', `${JSON.stringify(name)}: ${found}`)
}

/** Says what is wrong with the name and what is allowed; null for a good one. */
export function whyNotAName(name: string): string | null {
  const found =
    FORBIDDEN.find(([pattern]) => pattern.test(name))?.[1] ??
    (Buffer.byteLength(name) > NAME_MAX ? `it has ${Buffer.byteLength(name)} bytes` : null)
  return found && `${found}; a name is 1 to ${NAME_MAX} bytes of UTF-8 that could name a file`
}
