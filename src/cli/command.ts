/** Shared by all commands. */
import { Command } from 'commander'

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

/** Prints the result: as JSON, or as `text`, of which an empty one prints nothing. */
export function print(output: Output, result: unknown, text: string): void {
  const shown = output.json ? JSON.stringify(result, null, 2) : text
  if (shown !== '') process.stdout.write(`${shown}\n`)
}
