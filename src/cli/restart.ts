import { command, type Output, POOL_HELP, print } from './command.js'
import { configOf, placeOfPool, withDaemonOf } from './pool.js'

export const restart = command(
  'restart',
  'Serve a mounted pool with a new engine, such as one of a newer thinfs; users of it only wait.',
  'thinfs restart /mnt/thin',
)
  .argument('<POOL>', POOL_HELP)
  .action(async (pool: string, output: Output) => {
    const place = placeOfPool(pool)
    await withDaemonOf(place, daemon => daemon.restart())
    await configOf(pool).catch((err: Error) => {
      process.stderr.write(`thinfs: ${err.message}; the pool goes on as it was mounted\n`)
    })
    print(output, { file: place.file }, '')
  })
