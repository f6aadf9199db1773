/** The limits on where a volume may end. */
import { MAX_DEVICE_SIZE, refused, type ThinfsError } from '../base/index.js'
import type { Volume } from '../volumes/index.js'

/**
 * @throws EFBIG for what no volume, or not this one as long as it is held, can be made as long as
 */
export function mustBeAbleToEnd(volume: Volume, end: number): void {
  if (end > MAX_DEVICE_SIZE) throw tooFar(volume, end)
  if (volume.heldFor !== null) throw refused('EFBIG', `${volume.name}: ${volume.heldFor}`)
}

export const tooFar = ({ name }: Volume, end: number): ThinfsError =>
  refused('EFBIG', `${name}: ${end} bytes`)
