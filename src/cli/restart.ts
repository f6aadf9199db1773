import { command, type Output, POOL_HELP, print } from './command.js'
import { configOf, withDaemonOf } from './pool.js'

export const restart = command(
  'restart',
  'Serve a mounted pool with a new engine, such as one of a newer thinfs; users of it only wait.',
  'thinfs restart /mnt/thin',
)
  .argument('<POOL>', POOL_HELP)
  .action(async (pool: string, output: Output) => {
    const config = await configOf(pool)
    await withDaemonOf(config, daemon => daemon.restart())
    print(output, { file: config.file }, '')
  })
