import { stat } from 'node:fs/promises'
import { join } from 'node:path'
import { ThinfsError } from '../base/index.js'
import { command, type Output, POOL_HELP, print } from './command.js'
import { attachLoop } from './loop.js'
import { mountPointOf, withPool } from './pool.js'

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
    const mountPoint = await withPool(pool, 'read', mountPointOf)
    const file = join(mountPoint, name)
    await stat(file).catch(cause => {
      if (cause.code !== 'ENOENT') throw cause
      throw new ThinfsError('VOLUME_MISSING', `${name}: no volume has the name`, { cause })
    })
    const device = await attachLoop(file, options.readOnly ?? false)
    print(options, { device }, device)
  })
