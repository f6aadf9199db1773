/** Shared by all commands. */
import { Command, InvalidArgumentError } from 'commander'
import { setWait } from './pool.js'

export const POOL_HELP = 'a pool.yaml, the folder that has one, or the mount point'

export interface Output {
  json?: true
}

/** A command with `--json`, and an example in its help. */
export function command(name: string, description: string, example: string): Command {
  return new Command(name)
    .description(description)
    .option('--json', 'print the result as JSON; sizes in bytes, times in seconds since 1970')
    .addHelpText('after', `\nExample:\n  $ ${example}`)
}

export const WAIT_HELP = 'how long it waits for other commands on the pool while it is not mounted'

/** Seconds. */
export const DEFAULT_WAIT = 10

/** A command on a pool, which takes it from its files when it is not mounted. */
export function poolCommand(name: string, description: string, example: string): Command {
  return command(name, description, example)
    .argument('<POOL>', POOL_HELP)
    .option('--wait <seconds>', WAIT_HELP, seconds, DEFAULT_WAIT)
    .hook('preAction', (_, action) => setWait(action.opts<{ wait: number }>().wait))
}

/** Of an option. */
export function seconds(text: string): number {
  if (/^\d{1,9}(\.\d{1,3})?$/.test(text)) return Number(text)
  throw new InvalidArgumentError('A number of seconds is what it takes, 0 for not at all.')
}

/** Prints the result: as JSON, or as `text`, of which an empty one prints nothing. */
export function print(output: Output, result: unknown, text: string): void {
  const shown = output.json ? JSON.stringify(result, null, 2) : text
  if (shown !== '') process.stdout.write(`${shown}\n`)
}
