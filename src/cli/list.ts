import type { VolumeInfo } from '../volumes/index.js'
import { command, type Output, POOL_HELP, print } from './command.js'
import { withPool } from './pool.js'

interface Options extends Output {
  exclusive?: true
}

const HEAD = ['NAME', 'ID', 'SIZE', 'MAPPED', 'DATA%', 'EXCLUSIVE', 'ORIGIN', 'CREATED', 'OPEN']
const NUMBERS = [1, 2, 3, 4, 5]

export const list = command(
  'list',
  'List the volumes: size, space mapped, origin, and when each was made.',
  'thinfs list /srv/pool',
)
  .argument('<POOL>', POOL_HELP)
  .option('--exclusive', 'count what removing each would give back: a look at every mapping')
  .action(async (pool: string, { exclusive, ...output }: Options) => {
    const { formatSize } = await import('../config/index.js')
    const { table } = await import('./table.js')
    const volumes = await withPool(pool, 'read', admin =>
      admin.list({ exclusive: exclusive === true }),
    )
    const rows = volumes.map(volume => row(volume, formatSize))
    print(output, volumes, table([HEAD, ...rows], NUMBERS))
  })

function row(volume: VolumeInfo, formatSize: (bytes: number) => string): string[] {
  const { name, devId, size, mapped, exclusive, origin, created, open } = volume
  return [
    name,
    String(devId),
    formatSize(size),
    formatSize(mapped),
    size === 0 ? '-' : ((mapped / size) * 100).toFixed(2),
    exclusive === null ? '-' : formatSize(exclusive),
    origin ?? '-',
    created === null ? '-' : localTime(created),
    open ? 'yes' : 'no',
  ]
}

/** Sweden writes dates as ISO 8601 does. To make a format takes as long as to use it a thousand times. */
const LOCAL_TIME = new Intl.DateTimeFormat('sv-SE', { dateStyle: 'short', timeStyle: 'short' })

/** @param time seconds since 1970 */
const localTime = (time: number): string => LOCAL_TIME.format(time * 1000)
