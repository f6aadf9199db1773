import { existsSync, rmSync, statfsSync, statSync } from 'node:fs'
import { basename, dirname, join, resolve } from 'node:path'
import {
  isLikeAddress,
  isRemoteAddress,
  parseRemoteAddress,
  REMOTE_FORMS,
  type RemoteAddress,
  ThinfsError,
  withoutPassword,
} from '../base/index.js'
import { formatSize, newConfig, type PoolConfig, parseSize, poolNameOf } from '../config/index.js'
import { command, type Output, print } from './command.js'
import { noteSmallHost } from './host-room.js'
import { checkedConfig, writeNewConfig } from './new-pool-yaml.js'
import { collect, volumesOf } from './volume-option.js'

interface Options extends Output {
  dataSize?: string
  metadataSize?: string
  blockSize?: string
  volume?: string[]
  data?: string
  metadata?: string
  state?: string
  force?: true
  dryRun?: true
}

const DATA_SIZE = '100G'

export const init = command(
  'init',
  'Make a pool: its pool.yaml, unless there is one, and its files.',
  'thinfs init /srv/pool --data-size 100G --volume web=10G',
)
  .argument('<DIR|pool.yaml>', 'a folder, which is made if need be, or the pool.yaml in it')
  .option('--data-size <size>', `what all volumes together can hold (default ${DATA_SIZE})`)
  .option('--metadata-size <size>', 'auto (default), or 2M to 15.88G')
  .option('--block-size <size>', 'unit of provisioning, sharing and discard (default 64K)')
  .option('--volume <NAME=SIZE>', 'a first volume; more than once for more', collect)
  .option('--data <place>', `a path, or an address: ${REMOTE_FORMS} (default data)`)
  .option('--metadata <place>', 'the same for the metadata (default metadata)')
  .option('--state <address>', 'for names and sizes, where the metadata is on another machine')
  .option('--force', 'overwrite what the files or devices hold; not those in use')
  .option('-n, --dry-run', 'show what would be made, and what is there, and make nothing')
  .action(async (target: string, options: Options) => {
    const file = isFolder(target) ? join(target, 'pool.yaml') : target
    const isNew = !existsSync(file)
    if (!isNew) refuseOptions(file, options)
    if (options.dryRun) return await showPlan(file, isNew, options)
    if (isNew) await writeNewConfig(configFrom(file, options))
    const config = await makePool(file, options.force ?? false).catch(err => {
      if (isNew) rmSync(file)
      throw err
    })
    const { data, dataBlockSize, volumes } = config
    const size = data.size === null ? data.path : formatSize(data.size)
    if (data.size !== null) {
      const { bavail, bsize } = statfsSync(data.path)
      noteSmallHost(data.path, data.size, bavail * bsize)
    }
    print(
      options,
      config,
      `${config.file}: ${size} in blocks of ${formatSize(dataBlockSize)}, ` +
        `${Object.keys(volumes).length} volumes`,
    )
  })

async function showPlan(file: string, isNew: boolean, options: Options): Promise<void> {
  const { loadConfig } = await import('../config/index.js')
  const config = isNew ? await checkedConfig(configFrom(file, options)) : loadConfig(file)
  const { planPool } = await import('../volumes/index.js')
  const planned = await planPool(config, { force: options.force ?? false })
  const yaml = { path: config.file, size: null, isNew, holds: null }
  const files = isNew ? [yaml, ...planned] : planned
  const lines = files.map(({ path, size, isNew, holds }) => {
    const what = isNew ? 'would be made' : 'is there and would be used'
    const has = holds === null ? '' : `; overwritten would be ${holds}`
    return `${path}: ${what}${size === null ? '' : `, ${formatSize(size)}`}${has}`
  })
  print(options, { config, files }, lines.join('\n'))
}

async function makePool(file: string, force: boolean): Promise<PoolConfig> {
  const { loadConfig } = await import('../config/index.js')
  const { initPool } = await import('../volumes/index.js')
  const config = loadConfig(file)
  await initPool(config, { force })
  return config
}

function isFolder(target: string): boolean {
  const stat = statSync(target, { throwIfNoEntry: false })
  return stat ? stat.isDirectory() : !/\.ya?ml$/.test(target)
}

function configFrom(file: string, options: Options): PoolConfig {
  const path = resolve(file)
  const folder = dirname(path)
  const { metadataSize = 'auto' } = options
  const data = placeOf(options.data)
  const metadata = placeOf(options.metadata)
  mustHaveNoSize(data, options.dataSize)
  mustHaveNoSize(metadata, options.metadataSize)
  return newConfig(path, {
    pool: poolNameOf(basename(folder)),
    dataSize: dataSizeOf(data, options.dataSize),
    metadataSize: metadataSize === 'auto' ? 'auto' : parseSize(metadataSize),
    at: {
      ...(data !== undefined && { data }),
      ...(metadata !== undefined && { metadata }),
      ...(options.state !== undefined && { state: parseRemoteAddress(options.state) }),
    },
    ...(options.blockSize && { dataBlockSize: parseSize(options.blockSize) }),
    volumes: volumesOf(options.volume),
  })
}

/** A path, or an address, as an option has it. @throws BAD_ARGUMENT */
function placeOf(option: string | undefined): string | RemoteAddress | undefined {
  if (option === undefined) return undefined
  if (isRemoteAddress(option)) return parseRemoteAddress(option)
  if (!isLikeAddress(option)) return resolve(option)
  const detail = `${withoutPassword(option)}: is no address that is known; ${REMOTE_FORMS}`
  throw new ThinfsError('BAD_ARGUMENT', detail)
}

/** @throws BAD_ARGUMENT */
function mustHaveNoSize(place: string | RemoteAddress | undefined, said: string | undefined): void {
  if (typeof place !== 'object' || said === undefined) return
  const what = 'its size is what the server has, and no option sets it'
  throw new ThinfsError('BAD_ARGUMENT', `${place.text}: ${what}`)
}

/** A device, and what is on another machine, is as large as it is. */
function dataSizeOf(
  place: string | RemoteAddress | undefined,
  said: string | undefined,
): number | null {
  if (said !== undefined) return parseSize(said)
  if (typeof place === 'object') return null
  const isDevice =
    place !== undefined && statSync(place, { throwIfNoEntry: false })?.isBlockDevice()
  return isDevice ? null : parseSize(DATA_SIZE)
}

function refuseOptions(file: string, options: Options): void {
  const { json: _, force: __, dryRun: ___, ...described } = options
  if (Object.keys(described).length === 0) return
  throw new ThinfsError('BAD_ARGUMENT', `${file} is there: what it says counts, not options`)
}
