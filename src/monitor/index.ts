/** A mounted pool as people and programs watch it: rates, metrics, a page. */
import type { Scraped } from './metrics.js'
import type { WatchedPool } from './watch.js'

export { type Listen, listenOf } from './listen.js'
export {
  type CacheRates,
  type IoRates,
  type OperationRates,
  type PoolRates,
  ratesOf,
  type VolumeRates,
} from './rates.js'
export { Monitor, type MonitorOptions } from './server.js'
export { newToken, tokenIn } from './token.js'
export { isSort, SORTS, type Sort, type TopOptions, topView } from './top-view.js'

/**
 * The text of a scrape by Prometheus; see metrics.ts, which is loaded with its package only then.
 */
export async function metricsText(pool: string, scraped: Scraped | null): Promise<string> {
  const metrics = await import('./metrics.js')
  return metrics.metricsText(pool, scraped)
}

/** See `scrape` of metrics.ts, which is loaded with its package only then. */
export async function scrape(pool: Pick<WatchedPool, 'statistics' | 'status'>): Promise<Scraped> {
  const metrics = await import('./metrics.js')
  return metrics.scrape(pool)
}
