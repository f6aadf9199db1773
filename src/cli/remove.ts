import { volumeMissing } from '../base/index.js'
import { formatSizes } from '../config/index.js'
import type { PoolAdmin, VolumeInfo } from '../volumes/index.js'
import { type Output, poolCommand, print } from './command.js'
import { mustBeWanted, YES_OPTION } from './confirm.js'
import { namingHolders, withPool } from './pool.js'

interface Options extends Output {
  yes?: true
  dryRun?: true
}

export const remove = poolCommand(
  'remove',
  'Remove volumes. What no other volume shares becomes free space.',
  'thinfs remove /srv/pool web-before-upgrade --yes',
)
  .argument('<NAME...>', 'of the volumes')
  .option(...YES_OPTION)
  .option('-n, --dry-run', 'show what would be removed, and what each would give back')
  .action(async (pool: string, names: string[], { yes, dryRun, ...output }: Options) => {
    if (dryRun) {
      const volumes = await withPool(pool, 'read', admin => find(admin, names, true))
      const lines = volumes.map(volume => `${describe(volume)} would be removed`)
      return print(output, { removed: [], wouldRemove: volumes }, lines.join('\n'))
    }
    const question = async (): Promise<string> => {
      const volumes = await withPool(pool, 'read', admin => find(admin, names, false))
      return `Remove ${volumes.map(describe).join(', ')}?`
    }
    await mustBeWanted('removing volumes', { yes, dryRun: true, question })
    await withPool(pool, 'write', (admin, { file }) =>
      namingHolders(admin, file, names, () => admin.remove({ names })),
    )
    print(output, { removed: names }, '')
  })

/** @throws VOLUME_MISSING */
async function find(admin: PoolAdmin, names: string[], exclusive: boolean): Promise<VolumeInfo[]> {
  const volumes = await admin.list({ exclusive, names })
  return names.map(name => {
    const found = volumes.find(volume => volume.name === name)
    if (found === undefined) throw volumeMissing(name)
    return found
  })
}

function describe({ name, size, mapped, exclusive, open }: VolumeInfo): string {
  const [has, maps, own] = formatSizes(size, mapped, exclusive ?? 0)
  const parts = [
    ...[has, `${maps} mapped`],
    ...(exclusive === null ? [] : [`${own} of it shared with no other volume`]),
    ...(open ? ['in use'] : []),
  ]
  return `${name} (${parts.join(', ')})`
}
