import { InvalidArgumentError } from 'commander'
import { MAX_DEV_ID } from '../base/index.js'

/** The `--id` option's value. */
export function deviceId(text: string): number {
  if (/^\d+$/.test(text) && Number(text) <= MAX_DEV_ID) return Number(text)
  throw new InvalidArgumentError(`A device id is 0 to ${MAX_DEV_ID}.`)
}
