import { ThinfsError } from '../base/index.js'
import { formatSize, parseSize } from '../config/index.js'
import { command, type Output, POOL_HELP, print } from './command.js'
import { deviceId } from './device-id.js'
import { withPool } from './pool.js'

interface Options extends Output {
  size: string
  id?: number
  limit?: string
  reserve?: string
}

export const create = command(
  'create',
  'Make a thin volume. It takes no space until it is written to.',
  'thinfs create /srv/pool web --size 10G',
)
  .argument('<POOL>', POOL_HELP)
  .argument('<NAME>', 'of the new volume: its file in the mount')
  .requiredOption('--size <size>', 'virtual size: a multiple of 512 bytes')
  .option('--id <number>', 'device id, 0 to 16777215 (default: the next one)', deviceId)
  .option('--limit <size>', 'the most that it may map: writes beyond fail with ENOSPC')
  .option('--reserve <size>', 'what the pool keeps for it, however full others make it')
  .action(async (pool: string, name: string, options: Options) => {
    const size = parseSize(options.size)
    if (size === 0) {
      const empty = 'touch makes a file without one in the mount, which grows as it is written to'
      throw new ThinfsError('BAD_ARGUMENT', `--size 0: a volume needs a size; ${empty}`)
    }
    const request = {
      ...{ name, size },
      ...(options.id !== undefined && { devId: options.id }),
      ...(options.limit !== undefined && { limit: parseSize(options.limit) }),
      ...(options.reserve !== undefined && { reserve: parseSize(options.reserve) }),
    }
    const volume = await withPool(pool, 'write', admin => admin.create(request))
    print(options, volume, `${name}: ${formatSize(volume.size)}, device id ${volume.devId}`)
  })
