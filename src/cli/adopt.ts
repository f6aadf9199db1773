import { existsSync } from 'node:fs'
import { join, resolve } from 'node:path'
import type { FoundPool } from '../adopt/index.js'
import { ThinfsError } from '../base/index.js'
import { formatSize, formatSizes, newConfig, type PoolConfig, poolNameOf } from '../config/index.js'
import type { ExistingPool } from '../volumes/index.js'
import { command, type Output, print } from './command.js'
import { writeNewConfig } from './new-pool-yaml.js'

interface Options extends Output {
  pool?: string
}

export const adopt = command(
  'adopt',
  "Make a pool.yaml for a thin pool of LVM or Docker's, where it is. Nothing else is written.",
  'thinfs adopt disk.img /srv/found && thinfs mount -o ro /srv/found /mnt/thin',
)
  .argument(
    '<SOURCE>',
    "a physical volume or disk of LVM's, or its image; or Docker's devicemapper folder",
  )
  .argument('<DIR>', 'the folder for pool.yaml, which is made if need be')
  .option('--pool <NAME>', 'which one, as in vg/pool, where there are several')
  .action(async (source: string, folder: string, options: Options) => {
    const file = join(resolve(folder), 'pool.yaml')
    if (existsSync(file)) throw new ThinfsError('BAD_ARGUMENT', `${file} is there already`)
    const { choosePool, findPools } = await import('../adopt/index.js')
    const found = choosePool(source, await findPools(source), options.pool)
    const described = configOf(file, found)
    const { readExistingPool } = await import('../volumes/index.js')
    const pool = readExistingPool(described)
    const { volumes, notes } = inPool(found, pool)
    const config = { ...described, dataBlockSize: pool.dataBlockSize, volumes }
    await writeNewConfig(config)
    for (const note of notes) process.stderr.write(`thinfs: ${note}\n`)
    const block = formatSize(pool.dataBlockSize)
    const count = Object.keys(volumes).length
    print(
      options,
      { ...config, notes },
      `${file}: ${found.name}, ${formatSize(pool.dataSize)} in blocks of ${block}, ${count} volumes\n` +
        `To look at it, with nothing changed: thinfs mount -o ro ${folder} MOUNTPOINT`,
    )
  })

/** As far as its program describes it. */
function configOf(
  file: string,
  { name, metadata, data, volumes, discards }: FoundPool,
): PoolConfig {
  const config = newConfig(file, { pool: poolNameOf(name), dataSize: null, volumes })
  return {
    ...config,
    discards,
    data: { path: data.path, size: null, ...(data.extents && { extents: data.extents }) },
    metadata: {
      path: metadata.path,
      size: 'auto',
      ...(metadata.extents && { extents: metadata.extents }),
    },
  }
}

/** The volumes that the metadata has, and what its program's description differs in. */
function inPool(found: FoundPool, pool: ExistingPool): Pick<FoundPool, 'volumes' | 'notes'> {
  const notes = [...found.notes]
  const volumes: FoundPool['volumes'] = {}
  const named = new Set<number>()
  for (const [name, volume] of Object.entries(found.volumes)) {
    const { id } = volume
    if (!pool.devices.has(id!)) notes.push(`${name} is left out: the pool has no device ${id}`)
    else if (named.has(id!)) notes.push(`${name} is left out: another has device ${id}, too`)
    else {
      named.add(id!)
      volumes[name] = volume
    }
  }
  for (const volume of Object.values(volumes)) {
    const { snapshotOf } = volume
    if (snapshotOf !== undefined && volumes[snapshotOf] === undefined) delete volume.snapshotOf
  }
  const unnamed = [...pool.devices].filter(id => !named.has(id))
  if (unnamed.length > 0) {
    notes.push(`without a name, they are thin-ID: devices ${unnamed.join(', ')}`)
  }
  if (found.transactionId !== null && found.transactionId !== pool.transactionId) {
    const both = `${found.transactionId} in its description, ${pool.transactionId} in the pool`
    notes.push(`${found.name}: transaction ${both}: names may not be those of the volumes`)
  }
  if (pool.dataFound < pool.dataSize) {
    const [has, wanted] = formatSizes(pool.dataFound, pool.dataSize)
    notes.push(`${found.name}: the data is too short: ${has} are there, of ${wanted}`)
  }
  return { volumes, notes }
}
