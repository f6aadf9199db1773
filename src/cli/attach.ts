import { attachLoop } from '../host/index.js'
import { command, type Output, POOL_HELP, print } from './command.js'
import { volumeFile, withPool } from './pool.js'

interface Options extends Output {
  readOnly?: true
}

export const attach = command(
  'attach',
  'Make a loop device of a volume, by losetup(8) with direct I/O; prints its name.',
  'mkfs.ext4 $(thinfs attach /srv/pool web)',
)
  .argument('<POOL>', POOL_HELP)
  .argument('<NAME>', 'of the volume')
  .option('--read-only', 'a device that cannot be written to')
  .action(async (pool: string, name: string, options: Options) => {
    const file = await withPool(pool, 'read', (admin, place) => volumeFile(admin, place.file, name))
    const device = await attachLoop(file.path, options.readOnly ?? false)
    print(options, { device }, device)
  })
