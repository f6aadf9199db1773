import { METADATA_BLOCK_SIZE, ThinfsError } from '../base/index.js'
import type { PoolConfig } from '../config/index.js'
import { autoMetadataSize, exactSize, formatSize, formatSizes, parseSize } from '../config/index.js'
import type { Change, PoolStatus } from '../volumes/index.js'
import { type Output, poolCommand, print } from './command.js'
import { noteSmallHost } from './host-room.js'
import { configOf, withPool } from './pool.js'

interface Options extends Output {
  data?: string
  metadata?: string
}

/** Sizes of a pool's data and metadata in bytes. */
interface Sizes {
  data: number
  metadata: number
}

export const extend = poolCommand(
  'extend',
  `Make a pool larger, mounted or not, and say so in its pool.yaml. Writes that wait for space go on.
Without sizes: as large as pool.yaml says, and its block devices have become.`,
  'thinfs extend /srv/pool --data +50G',
)
  .option('--data <size>', 'what all volumes together can hold, as in 100G; +50G is relative')
  .option('--metadata <size>', 'up to 15.88G, as in 1G; +64M is relative')
  .action(async (pool: string, options: Options) => {
    const { changePoolYaml, mustTake } = await import('../volumes/index.js')
    const config = await configOf(pool)
    const { before, after, status } = await withPool(pool, 'write', async (admin, { file }) => {
      const before = await admin.status()
      const wanted = wantedOf(before, config, options)
      mustTake(file, changeOf(config, { ...sizesOf(before), ...wanted }))
      const after = await admin.extend(wanted)
      await changePoolYaml(file, changeOf(config, after)).catch(err => {
        if (!(err instanceof ThinfsError)) throw err
        const grown = `the pool has ${formatSize(after.data)} of data now: say that, not +, when you try again`
        throw new ThinfsError(err.code, `${err.message}; ${grown}`, {
          cause: err,
          errno: err.errno,
        })
      })
      return { before: sizesOf(before), after, status: await admin.status() }
    })
    const { data, dataBlockSize } = status
    noteSmallHost(data.path, (data.blocks - data.usedBlocks) * dataBlockSize, data.hostFree)
    const lines = [
      line('data', before.data, after.data),
      line('metadata', before.metadata, after.metadata),
    ]
    print(options, { before, after }, lines.join('\n'))
  })

function line(what: string, before: number, after: number): string {
  const [has, had] = formatSizes(after, before)
  return `${what}: ${has}, ${after === before ? 'as it was' : `it was ${had}`}`
}

const sizesOf = ({ data, metadata, dataBlockSize }: PoolStatus): Sizes => ({
  data: data.blocks * dataBlockSize,
  metadata: metadata.blocks * METADATA_BLOCK_SIZE,
})

/** The sizes to ask the pool for. */
function wantedOf(status: PoolStatus, config: PoolConfig, options: Options): Partial<Sizes> {
  const has = sizesOf(status)
  const wanted: Partial<Sizes> = {}
  if (options.data !== undefined) wanted.data = sizeOf('--data', options.data, has.data)
  else if ((config.data.size ?? 0) > has.data) wanted.data = config.data.size!
  if (options.metadata !== undefined) {
    wanted.metadata = sizeOf('--metadata', options.metadata, has.metadata)
  } else if (config.metadata.size === 'auto' && status.metadata.hostFree !== null) {
    const auto = autoMetadataSize(wanted.data ?? has.data, config.dataBlockSize)
    if (auto > has.metadata) wanted.metadata = auto
  } else if (config.metadata.size !== 'auto' && config.metadata.size > has.metadata) {
    wanted.metadata = config.metadata.size
  }
  return wanted
}

/** @param has what a relative size counts from */
function sizeOf(option: string, text: string, has: number): number {
  try {
    return text.startsWith('+') ? has + parseSize(text.slice(1)) : parseSize(text)
  } catch (err) {
    throw new ThinfsError('BAD_ARGUMENT', `${option} ${(err as Error).message}`, { cause: err })
  }
}

/** The change that keeps the sizes in pool.yaml true, of those that it names. */
function changeOf(config: PoolConfig, { data, metadata }: Sizes): Change {
  const isOther = (said: number | 'auto' | null, is: number): boolean =>
    typeof said === 'number' && said !== is
  const saysData = isOther(config.data.size, data)
  const saysMetadata = isOther(config.metadata.size, metadata)
  return {
    settings: [
      ...(saysData ? [[['data', 'size'], exactSize(data)] as const] : []),
      ...(saysMetadata ? [[['metadata', 'size'], exactSize(metadata)] as const] : []),
    ],
    apply: now => ({
      ...now,
      ...(saysData && { data: { ...now.data, size: data } }),
      ...(saysMetadata && { metadata: { ...now.metadata, size: metadata } }),
    }),
  }
}
