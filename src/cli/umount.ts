import { command, type Output, POOL_HELP, print } from './command.js'
import { withDaemon } from './pool.js'

export const umount = command(
  'umount',
  'Unmount a pool; returns when all is committed.',
  'thinfs umount /mnt/thin',
)
  .argument('<POOL>', POOL_HELP)
  .action(async (pool: string, output: Output) => {
    const config = await withDaemon(pool, daemon => daemon.umount())
    print(output, { file: config.file }, '')
  })
