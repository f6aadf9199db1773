import { connectDaemon } from '../control/index.js'
import { command, type Output, POOL_HELP, print } from './command.js'
import { placeOfPool } from './pool.js'

export const metrics = command(
  'metrics',
  "Print the counters of a pool as Prometheus takes them, for node_exporter's textfile collector.",
  'thinfs metrics /mnt/thin > /var/lib/node_exporter/thinfs.prom',
)
  .argument('<POOL>', POOL_HELP)
  .addHelpText(
    'after',
    `
thinfs serve has the same at /metrics. A pool that is not mounted, or has no engine any more, has
thinfs_up 0, and nothing else.`,
  )
  .action(async (pool: string, output: Output) => {
    const place = placeOfPool(pool)
    const daemon = await connectDaemon(place)
    try {
      let failure: unknown = null
      const statistics =
        (await daemon?.statistics().catch((err: unknown) => {
          failure = err
          return null
        })) ?? null
      const { metricsText } = await import('../monitor/index.js')
      print(output, statistics, (await metricsText(place.file, statistics)).trimEnd())
      // Whoever collects them is told all the same.
      if (failure !== null) throw failure
    } finally {
      daemon?.close()
    }
  })
