/** The question before data goes. */
import { createInterface } from 'node:readline/promises'
import { ThinfsError } from '../base/index.js'

/** Whether there is somebody to ask. */
const canAsk = (): boolean => Boolean(process.stdin.isTTY && process.stderr.isTTY)

/** The option of every command that removes something for good. */
export const YES_OPTION = [
  '-y, --yes',
  'without asking; needed where there is no terminal',
] as const

/**
 * Asks whether something is to go for good.
 * @param what begins the error where nobody can be asked
 * @param ask.dryRun whether the command has `--dry-run`
 * @param ask.question null where nothing would go
 * @throws BAD_ARGUMENT where nobody can be asked; CANCELLED for any answer but yes
 */
export async function mustBeWanted(
  what: string,
  ask: { yes: boolean | undefined; dryRun?: true; question: () => Promise<string | null> },
): Promise<void> {
  if (ask.yes) return
  if (!canAsk()) {
    const look = ask.dryRun ? ', --dry-run shows what would be done' : ''
    const how = `--yes does it without asking${look}`
    throw new ThinfsError(
      'BAD_ARGUMENT',
      `${what} has to be confirmed, and there is no terminal; ${how}`,
    )
  }
  const question = await ask.question()
  if (question !== null) await confirm(question)
}

/** Asks on the terminal. @throws CANCELLED for any answer but yes */
async function confirm(question: string): Promise<void> {
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
