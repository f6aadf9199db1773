import { ThinfsError } from '../base/index.js'
import { formatSize, parseSize } from '../config/index.js'
import { command, type Output, POOL_HELP, print } from './command.js'
import { deviceId } from './device-id.js'
import { withPool } from './pool.js'

interface Options extends Output {
  size?: string
  id?: number
}

export const create = command(
  'create',
  'Make a thin volume. It takes no space until it is written to.',
  'thinfs create /srv/pool web --size 10G',
)
  .argument('<POOL>', POOL_HELP)
  .argument('<NAME>', 'of the new volume: its file in the mount')
  .option('--size <size>', 'virtual size: a multiple of 512 bytes')
  .option('--id <number>', 'device id, 0 to 16777215 (default: the next one)', deviceId)
  .action(async (pool: string, name: string, options: Options) => {
    // As one that the parser requires, it would be missed before an option that is misspelt is seen.
    if (options.size === undefined) {
      throw new ThinfsError(
        'BAD_ARGUMENT',
        "required option '--size <size>' not specified; see thinfs create --help",
      )
    }
    const size = parseSize(options.size)
    if (size === 0) {
      const empty = 'touch makes a file without one in the mount, which grows as it is written to'
      throw new ThinfsError('BAD_ARGUMENT', `--size 0: a volume needs a size; ${empty}`)
    }
    const request = { name, size, ...(options.id !== undefined && { devId: options.id }) }
    const volume = await withPool(pool, 'write', admin => admin.create(request))
    print(options, volume, `${name}: ${formatSize(volume.size)}, device id ${volume.devId}`)
  })
