import { ThinfsError } from '../base/index.js'
import { command, type Output, POOL_HELP, print } from './command.js'
import { configOf } from './pool.js'

export const restart = command(
  'restart',
  'Serve a mounted pool with a new engine, such as one of a newer thinfs; users of it only wait.',
  'thinfs restart /mnt/thin',
)
  .argument('<POOL>', POOL_HELP)
  .action(async (pool: string, output: Output) => {
    const { connectDaemon } = await import('../daemon/index.js')
    const config = await configOf(pool)
    const daemon = await connectDaemon(config)
    if (!daemon) throw new ThinfsError('NOT_MOUNTED', `${config.file}: the pool is not mounted`)
    try {
      await daemon.restart()
    } finally {
      daemon.close()
    }
    print(output, { file: config.file }, '')
  })
