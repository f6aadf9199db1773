/** The question before data goes. */
import { createInterface } from 'node:readline/promises'
import { ThinfsError } from '../base/index.js'

/** Whether there is somebody to ask. */
export const canAsk = (): boolean => Boolean(process.stdin.isTTY && process.stderr.isTTY)

/** @throws BAD_ARGUMENT where nobody can be asked */
export function mustBeAbleToAsk(what: string): void {
  if (canAsk()) return
  const how = '--yes does it without asking, --dry-run shows what would be done'
  throw new ThinfsError(
    'BAD_ARGUMENT',
    `${what} has to be confirmed, and there is no terminal; ${how}`,
  )
}

/** Asks on the terminal. @throws CANCELLED for any answer but yes */
export async function confirm(question: string): Promise<void> {
  const terminal = createInterface({ input: process.stdin, output: process.stderr })
  try {
    const answer = await Promise.race([
      terminal.question(`${question} [y/N] `),
      // At the end of the input, Ctrl-D, nobody answers any more.
      new Promise<string>(resolve => terminal.once('close', () => resolve(''))),
    ])
    if (/^y(es)?$/i.test(answer.trim())) return
  } finally {
    terminal.close()
  }
  throw new ThinfsError('CANCELLED', 'nothing was done')
}
