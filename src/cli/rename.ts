import { type Output, poolCommand, print } from './command.js'
import { namingHolders, withPool } from './pool.js'

export const rename = poolCommand(
  'rename',
  'Give a volume another name.',
  'thinfs rename /srv/pool web web-old',
)
  .argument('<OLD>', 'its name now')
  .argument('<NEW>', 'its new name')
  .action(async (pool: string, from: string, to: string, output: Output) => {
    const volume = await withPool(pool, 'write', (admin, { file }) =>
      namingHolders(admin, file, [from, to], () => admin.rename({ from, to })),
    )
    print(output, volume, '')
  })
