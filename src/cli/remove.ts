import { command, type Output, POOL_HELP, print } from './command.js'
import { namingHolders, withPool } from './pool.js'

export const remove = command(
  'remove',
  'Remove volumes. What no other volume shares becomes free space.',
  'thinfs remove /srv/pool web-before-upgrade',
)
  .argument('<POOL>', POOL_HELP)
  .argument('<NAME...>', 'of the volumes')
  .action(async (pool: string, names: string[], output: Output) => {
    await withPool(pool, 'write', (admin, { file }) =>
      namingHolders(admin, file, names, () => admin.remove({ names })),
    )
    print(output, { removed: names }, '')
  })
