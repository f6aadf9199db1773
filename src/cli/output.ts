/** Standard output, which may be closed, or a file on a full disk. */
import { once } from 'node:events'
import { write } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'
import { errnoOf, ThinfsError } from '../base/index.js'

let failure: NodeJS.ErrnoException | null = null

/** Keeps what goes wrong on the streams for `finishOutput`, instead of a stack trace. */
export function watchOutput(): void {
  // Set by bin/thinfs.js.
  const isClosed = process.env.THINFS_STDOUT === 'closed'
  delete process.env.THINFS_STDOUT
  if (isClosed) {
    process.stdout.write = () => {
      failure = Object.assign(new Error('it is closed'), { code: 'EBADF' })
      return false
    }
  }
  process.stdout.on('error', err => {
    failure ??= err
  })
  // There is no one left to report it to.
  process.stderr.on('error', () => {})
}

/** Characters that are written at a time. */
const PART = 65_536

/**
 * Prints text as it comes, no faster than it is taken. Ends early when nobody takes it any more.
 */
export async function printAll(texts: Iterable<string>): Promise<void> {
  let part = ''
  for (const text of texts) {
    part += text
    if (part.length < PART) continue
    if (!process.stdout.write(part)) await once(process.stdout, 'drain').catch(() => {})
    if (failure !== null) return
    part = ''
  }
  process.stdout.write(part)
}

/** Prints a line at once. @returns false when nobody takes it any more */
export async function printLine(text: string): Promise<boolean> {
  if (!process.stdout.write(`${text}\n`)) await once(process.stdout, 'drain').catch(() => {})
  // The stream tells of an error a turn of the loop after the write.
  await new Promise(resolve => setImmediate(resolve))
  return failure === null
}

/**
 * Waits until all is written.
 * @throws IO_ERROR when it could not be; not for a reader that has seen enough (`thinfs list |
 *   head`)
 */
export async function finishOutput(): Promise<void> {
  if (process.stdout.writableLength > 0) await once(process.stdout, 'drain').catch(() => {})
  // The stream tells of an error a turn of the loop after the write.
  await new Promise(resolve => setImmediate(resolve))
  if (failure === null || failure.code === 'EPIPE') return
  const why = failure.message.replace(/^E[A-Z0-9]+: |, write$/g, '')
  throw new ThinfsError('IO_ERROR', `standard output: ${why}`, { cause: failure })
}

/** @throws BAD_ARGUMENT where bytes that are not text would go to a terminal */
export function mustNotBeTerminal(what: string): void {
  if (!process.stdout.isTTY) return
  const how = 'send it to a file, or to another command'
  throw new ThinfsError('BAD_ARGUMENT', `${what} is not for a terminal: ${how}`)
}

const STDOUT = 1
/** Milliseconds after which a pipe that is full, and does not wait itself, is tried again. */
const FULL_PERIOD = 10
const writeLater = promisify(write)

/** Writes bytes to standard output, as fast as they are taken. @throws IO_ERROR */
export async function writeOut(chunk: Uint8Array): Promise<void> {
  for (let done = 0; done < chunk.length; ) {
    try {
      done += (await writeLater(STDOUT, chunk, done, chunk.length - done, null)).bytesWritten
    } catch (err) {
      if (errnoOf(err) !== 'EAGAIN') {
        const why = (err as Error).message
        throw new ThinfsError('IO_ERROR', `standard output: ${why}`, {
          cause: err,
          errno: errnoOf(err),
        })
      }
      await sleep(FULL_PERIOD)
    }
  }
}
