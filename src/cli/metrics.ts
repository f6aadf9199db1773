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
thinfs serve has the same at /metrics. A pool that is not mounted has thinfs_up 0, and nothing else.`,
  )
  .action(async (pool: string, output: Output) => {
    const place = placeOfPool(pool)
    const daemon = await connectDaemon(place)
    try {
      const { metricsText, scrape } = await import('../monitor/index.js')
      const scraped = daemon === null ? null : await scrape(daemon)
      print(output, scraped, (await metricsText(place.file, scraped)).trimEnd())
    } finally {
      daemon?.close()
    }
  })
