import { type Output, poolCommand, print } from './command.js'
import { withPool } from './pool.js'

export const message = poolCommand(
  'message',
  'Send a thin-pool target message, in the words of dmsetup message.',
  'thinfs message /srv/pool "create_snap 1 0"',
)
  .argument(
    '<MESSAGE...>',
    'create_thin ID, create_snap ID ORIGIN, delete ID, set_transaction_id OLD NEW, ' +
      'reserve_metadata_snap or release_metadata_snap',
  )
  .action(async (pool: string, words: string[], output: Output) => {
    // As one types it for dmsetup, with a sector first, which no message of a pool's looks at.
    const isSector = words.length > 1 && /^\d+$/.test(words[0]!)
    const message = words.slice(isSector ? 1 : 0).join(' ')
    await withPool(pool, 'write', admin => admin.message({ message }))
    print(output, { message }, '')
  })
