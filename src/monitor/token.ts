/** The token that whoever asks `thinfs serve` has to know. */
import { randomBytes } from 'node:crypto'
import { closeSync, openSync, readFileSync, writeSync } from 'node:fs'
import { errnoOf, ioError, ThinfsError } from '../base/index.js'

/** Letters of a token at least: nobody finds it by trying. */
const LENGTH_MIN = 16
/** A file that is larger is another. */
const FILE_MAX = 4096

/** A new one, of 128 bits. */
export const newToken = (): string => randomBytes(16).toString('hex')

/**
 * The token in a file, which is made where it is not there, for its owner alone.
 * @throws BAD_ARGUMENT for a file that has something else; IO_ERROR
 */
export function tokenIn(file: string): string {
  try {
    const fd = openSync(file, 'wx', 0o600)
    try {
      const token = newToken()
      writeSync(fd, `${token}\n`)
      return token
    } finally {
      closeSync(fd)
    }
  } catch (err) {
    if (errnoOf(err) !== 'EEXIST') throw ioError(file, err)
  }
  let text: string
  try {
    text = readFileSync(file, 'utf8')
  } catch (err) {
    throw ioError(file, err)
  }
  const token = text.trim()
  if (text.length <= FILE_MAX && token.length >= LENGTH_MIN && /^[\w.~+/=-]+$/.test(token)) {
    return token
  }
  const what = `one word of at least ${LENGTH_MIN} letters, digits and ._~+/=- is a token`
  throw new ThinfsError('BAD_ARGUMENT', `${file}: ${what}`)
}
