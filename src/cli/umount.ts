import { ThinfsError } from '../base/index.js'
import { command, type Output, POOL_HELP, print } from './command.js'
import { configOf } from './pool.js'

export const umount = command(
  'umount',
  'Unmount a pool; returns when all is committed.',
  'thinfs umount /mnt/thin',
)
  .argument('<POOL>', POOL_HELP)
  .action(async (pool: string, output: Output) => {
    const { connectDaemon } = await import('../daemon/index.js')
    const config = await configOf(pool)
    const daemon = await connectDaemon(config)
    if (!daemon) throw new ThinfsError('NOT_MOUNTED', `${config.file}: the pool is not mounted`)
    try {
      await daemon.umount()
    } finally {
      daemon.close()
    }
    print(output, { file: config.file }, '')
  })
