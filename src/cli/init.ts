import { existsSync, rmSync, statfsSync, statSync } from 'node:fs'
import { basename, dirname, join, resolve } from 'node:path'
import { ThinfsError } from '../base/index.js'
import { formatSize, newConfig, type PoolConfig, parseSize, poolNameOf } from '../config/index.js'
import { command, type Output, print } from './command.js'
import { noteSmallHost } from './host-room.js'
import { writeNewConfig } from './new-pool-yaml.js'
import { collect, volumesOf } from './volume-option.js'

interface Options extends Output {
  dataSize?: string
  metadataSize?: string
  blockSize?: string
  volume?: string[]
  force?: true
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
  .option('--force', 'overwrite what the files or devices hold; not those in use')
  .action(async (target: string, options: Options) => {
    const file = isFolder(target) ? join(target, 'pool.yaml') : target
    const isNew = !existsSync(file)
    if (isNew) await writeConfig(file, options)
    else refuseOptions(file, options)
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

/** Writes a pool.yaml made of the options, after the check that it passes when it is read. */
async function writeConfig(file: string, options: Options): Promise<void> {
  const path = resolve(file)
  const folder = dirname(path)
  const { metadataSize = 'auto' } = options
  const config = newConfig(path, {
    pool: poolNameOf(basename(folder)),
    dataSize: parseSize(options.dataSize ?? DATA_SIZE),
    metadataSize: metadataSize === 'auto' ? 'auto' : parseSize(metadataSize),
    ...(options.blockSize && { dataBlockSize: parseSize(options.blockSize) }),
    volumes: volumesOf(options.volume),
  })
  await writeNewConfig(config)
}

function refuseOptions(file: string, options: Options): void {
  const { json: _, force: __, ...described } = options
  if (Object.keys(described).length === 0) return
  throw new ThinfsError('BAD_ARGUMENT', `${file} is there: what it says counts, not options`)
}
