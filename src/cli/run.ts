import { errnoOf, ThinfsError } from '../base/index.js'
import { command, type Output } from './command.js'
import { EXIT_USAGE, exitCodeOf, lineOf } from './failure.js'
import { collect, volumesOf } from './volume-option.js'

interface Options extends Output {
  volume?: string[]
}

/** As env(1) and timeout(1) have them: what the command's own statuses can be told from. */
const EXIT_NO_POOL = 125
const EXIT_CANNOT_RUN = 126
const EXIT_NOT_FOUND = 127

export const run = command(
  'run',
  'Run a command with a pool of its own, in memory, that ends with it.',
  "thinfs run --volume disk=1G -- sh -c 'mkfs.ext4 -F $THINFS_DISK'",
)
  .argument('<COMMAND>', 'a program; options of its own stand behind --')
  .argument('[ARG...]', 'its arguments')
  .option('--volume <NAME=SIZE>', 'a volume that the pool has; more than once for more', collect)
  .addHelpText(
    'after',
    `
The environment has THINFS_MOUNT, where the pool is mounted, and for each volume the path of its
file: THINFS_WEB_1 for web-1. When the command ends, by itself or by a signal, or thinfs is killed,
all that it has left is taken away: processes, mounts from volumes, loop devices on them, the pool.

Exit codes: the command's, 128+N when signal N has ended it; 125 without a pool, or when something
of it cannot be removed; 126 and 127 when the command cannot be started.`,
  )
  .action(async (program: string, args: string[], { volume, json }: Options) => {
    const volumes = Object.fromEntries(
      Object.entries(volumesOf(volume)).map(([name, { size }]) => [name, size]),
    )
    const { runCommand } = await import('../testing/index.js')
    try {
      process.exitCode = await runCommand({ volumes }, program, args)
    } catch (err) {
      process.stderr.write(`${lineOf(err, json === true)}\n`)
      process.exitCode = statusFor(err)
    }
  })

function statusFor(err: unknown): number {
  if (exitCodeOf(err) === EXIT_USAGE) return EXIT_USAGE
  if (!(err instanceof ThinfsError && err.code === 'TOOL_FAILED')) return EXIT_NO_POOL
  return errnoOf(err) === 'ENOENT' ? EXIT_NOT_FOUND : EXIT_CANNOT_RUN
}
