/** The counters of a pool as Prometheus takes them: docs/MONITORING.md has the names. */
import { Counter, Gauge, type MetricObject, Registry } from 'prom-client'
import {
  LATENCY_BOUNDS,
  METADATA_BLOCK_SIZE,
  OPERATIONS,
  type Operation,
  type OperationCounts,
} from '../base/index.js'
import type { PoolStatistics } from '../volumes/index.js'
import type { WatchedPool } from './watch.js'

const MODES = ['write', 'out_of_data_space', 'out_of_metadata_space', 'read_only', 'fail'] as const
/** The operations that have bytes. */
const WITH_BYTES = ['read', 'write', 'discard'] as const satisfies Operation[]

/** Buckets of a pool's histograms in seconds: every octave. */
const POOL_BOUNDS = LATENCY_BOUNDS.filter(bound => Math.log2(bound) % 1 === 0)
/** Those of a volume's are four times as wide: a pool may have a thousand volumes. */
const VOLUME_BOUNDS = LATENCY_BOUNDS.filter(bound => Math.log2(bound) % 2 === 0)

export const CONTENT_TYPE = Registry.PROMETHEUS_CONTENT_TYPE

/** A pool whose engines fail, or that is lost, has a mode and no counters. */
export type Scraped = PoolStatistics | { mode: 'fail' }

/** Asks a mounted pool for its counters, or for its mode where no engine can count. */
export async function scrape(pool: Pick<WatchedPool, 'statistics' | 'status'>): Promise<Scraped> {
  try {
    return await pool.statistics()
  } catch (err) {
    const { mode } = await pool.status()
    if (mode === 'fail') return { mode }
    throw err
  }
}

/**
 * The text of a scrape.
 * @param pool path of its pool.yaml
 * @param scraped null while the pool is not mounted, or its daemon does not answer
 */
export function metricsText(pool: string, scraped: Scraped | null): Promise<string> {
  const registry = new Registry()
  const one = { pool }
  const gauge = (name: string, help: string, values: [labels: object, value: number][]): void => {
    const labelNames = Object.keys(values[0]?.[0] ?? {})
    const metric = new Gauge({ name, help, labelNames, registers: [registry] })
    for (const [labels, value] of values) metric.set({ ...labels }, value)
  }
  const counter = (name: string, help: string, values: [labels: object, value: number][]): void => {
    const labelNames = Object.keys(values[0]?.[0] ?? {})
    const metric = new Counter({ name, help, labelNames, registers: [registry] })
    for (const [labels, value] of values) metric.inc({ ...labels }, value)
  }
  const up = scraped === null ? 0 : 1
  gauge('thinfs_up', 'Whether the pool is mounted and its daemon answers', [[one, up]])
  if (scraped === null) return registry.metrics()
  gauge(
    'thinfs_pool_mode',
    'The mode of the pool: 1 for the one it is in',
    MODES.map(mode => [{ ...one, mode }, mode === scraped.mode ? 1 : 0]),
  )
  if (!('io' in scraped)) return registry.metrics()
  const statistics = scraped
  const { data, metadata, dataBlockSize, work, io, volumes } = statistics
  gauge('thinfs_pool_start_time_seconds', 'When the counters were 0, since 1970', [
    [one, statistics.since],
  ])
  const inData = (blocks: number): [object, number][] => [[one, blocks * dataBlockSize]]
  const inMetadata = (blocks: number): [object, number][] => [[one, blocks * METADATA_BLOCK_SIZE]]
  gauge('thinfs_pool_data_size_bytes', 'Size of the data', inData(data.blocks))
  gauge('thinfs_pool_data_used_bytes', 'Data blocks in use', inData(data.usedBlocks))
  gauge(
    'thinfs_pool_data_low_water_bytes',
    'Free space at or below which the pool tells of it',
    inData(statistics.lowWaterMarkBlocks),
  )
  gauge('thinfs_pool_metadata_size_bytes', 'Size of the metadata', inMetadata(metadata.blocks))
  gauge('thinfs_pool_metadata_used_bytes', 'Metadata in use', inMetadata(metadata.usedBlocks))
  gauge(
    'thinfs_pool_metadata_low_water_bytes',
    'Free metadata at or below which the pool tells of it',
    inMetadata(statistics.metadataLowWaterMarkBlocks),
  )
  const host = Object.entries({ data: data.hostFree, metadata: metadata.hostFree }).flatMap(
    ([file, free]): [object, number][] => (free === null ? [] : [[{ ...one, file }, free]]),
  )
  if (host.length > 0) {
    gauge('thinfs_pool_host_available_bytes', 'What the host can still give to a file', host)
  }
  gauge('thinfs_pool_writes_waiting', 'Writes that wait for space now', [
    [one, statistics.writesWaiting],
  ])
  const counters: [name: string, help: string, value: number][] = [
    ['space_waits_total', 'Writes that had to wait for space', work.spaceWaits],
    ['commits_total', 'Transactions that became durable', work.commits],
    ['commit_seconds_total', 'Time that writing their metadata took', work.commitMs / 1000],
    ['punches_total', 'Runs of freed blocks that were passed down', work.punches],
    ['punched_bytes_total', 'Bytes of those', work.punchedBytes],
    ['cold_reads_total', 'Reads that had to wait for a disk', io.coldReads],
    ['engine_restarts_total', "Engines that took another's place", statistics.engineRestarts],
  ]
  const { tenancy } = statistics
  if (tenancy !== undefined) {
    const { strength, generation, since, signedAt, confirms, confirmMs } = tenancy
    gauge('thinfs_pool_tenancy_generation', 'Tenants that the pool has had', [
      [{ ...one, strength }, generation],
    ])
    gauge('thinfs_pool_tenancy_since_seconds', 'When this host acquired the pool, since 1970', [
      [one, since],
    ])
    const signed = 'When its last sign of life was written, since 1970; 0: none yet by this engine'
    gauge('thinfs_pool_tenancy_sign_seconds', signed, [[one, signedAt / 1000]])
    counters.push(
      ['tenancy_confirms_total', 'Looks whether the pool is this host’s still', confirms],
      ['tenancy_confirm_seconds_total', 'Time that those took', confirmMs / 1000],
    )
  }
  for (const [name, help, value] of counters) {
    counter(`thinfs_pool_${name}`, help, [[one, value]])
  }
  if (statistics.cache) {
    const { cache } = statistics
    const cached: [name: string, help: string, value: number][] = [
      ['hits_total', 'Reads that the cache answered', cache.hits],
      ['misses_total', 'Reads that waited for the disk of another machine', cache.misses],
      ['ahead_used_bytes_total', 'Bytes read ahead that somebody asked for', cache.aheadUsedBytes],
      ['ahead_wasted_bytes_total', 'Bytes read ahead in vain', cache.aheadWastedBytes],
      ['sent_bytes_total', 'Bytes that were written back', cache.sentBytes],
      ['sent_requests_total', 'Requests that this took', cache.sentRequests],
      ['flushes_total', 'Flushes of the disk', cache.flushes],
      ['reconnects_total', 'Connections made in the place of one that was lost', cache.reconnects],
    ]
    for (const [name, help, value] of cached) {
      counter(`thinfs_pool_cache_${name}`, help, [[one, value]])
    }
    const state: [name: string, help: string, value: number][] = [
      ['dirty_bytes', 'Bytes acknowledged that no flush has covered', cache.dirtyBytes],
      ['dirty_limit_bytes', 'How many there may be before writers wait', cache.dirtyLimit],
      [
        'drain_bytes_per_second',
        'What the disk takes, flushes included',
        cache.drainBytesPerSecond,
      ],
      ['writers_waiting', 'Writes that wait until less is dirty', cache.writersWaiting],
    ]
    for (const [name, help, value] of state)
      gauge(`thinfs_pool_cache_${name}`, help, [[one, value]])
  }
  counter(
    'thinfs_pool_request_bytes_total',
    'Bytes of requests, by operation',
    WITH_BYTES.map(operation => [{ ...one, operation }, io[operation].bytes]),
  )
  registry.registerMetric(
    histogram(
      'thinfs_pool_request_duration_seconds',
      'How long requests took in the engine, by operation',
      OPERATIONS.map(operation => [{ ...one, operation }, io[operation]]),
      POOL_BOUNDS,
    ),
  )
  if (volumes.length === 0) return registry.metrics()

  const each = (value: (volume: (typeof volumes)[number]) => number): [object, number][] =>
    volumes.map(volume => [{ ...one, volume: volume.name }, value(volume)])
  gauge(
    'thinfs_volume_size_bytes',
    'Virtual size',
    each(({ size }) => size),
  )
  gauge('thinfs_volume_mapped_bytes', 'Bytes of data blocks mapped, shared ones too', [
    ...each(({ mapped }) => mapped),
  ])
  gauge('thinfs_volume_open', 'Whether somebody has the volume open', [
    ...each(({ open }) => (open ? 1 : 0)),
  ])
  const busy = volumes.flatMap(({ name: volume, io }) => (io === null ? [] : [{ volume, io }]))
  counter('thinfs_volume_cold_reads_total', 'Reads that had to wait for a disk', [
    ...each(({ io }) => io?.coldReads ?? 0),
  ])
  const used = busy.flatMap(({ volume, io }) =>
    OPERATIONS.filter(operation => io[operation].count > 0).map(operation => {
      const labels = { ...one, volume, operation }
      return { labels, operation, counts: io[operation] }
    }),
  )
  if (used.length === 0) return registry.metrics()
  counter(
    'thinfs_volume_request_bytes_total',
    'Bytes of requests, by operation',
    used
      .filter(({ operation }) => (WITH_BYTES as readonly string[]).includes(operation))
      .map(({ labels, counts }) => [labels, counts.bytes]),
  )
  registry.registerMetric(
    histogram(
      'thinfs_volume_request_duration_seconds',
      'How long requests took in the engine, by operation',
      used.map(({ labels, counts }) => [labels, counts]),
      VOLUME_BOUNDS,
    ),
  )
  return registry.metrics()
}

/**
 * A histogram whose observations were made elsewhere: prom-client's own can only observe.
 * @param bounds microseconds, some of LATENCY_BOUNDS
 */
function histogram(
  name: string,
  help: string,
  series: [labels: object, counts: OperationCounts][],
  bounds: readonly number[],
): Gauge {
  const values = series.flatMap(([labels, { count, ms, buckets }]) => [
    ...bounds.map(bound => ({
      metricName: `${name}_bucket`,
      labels: { ...labels, le: bound / 1e6 },
      value: below(buckets, bound),
    })),
    { metricName: `${name}_bucket`, labels: { ...labels, le: '+Inf' }, value: count },
    { metricName: `${name}_sum`, labels, value: ms / 1000 },
    { metricName: `${name}_count`, labels, value: count },
  ])
  const metric = {
    name,
    help,
    type: 'histogram',
    aggregator: 'sum',
    values,
  } as unknown as MetricObject
  return { name, get: async () => metric } as unknown as Gauge
}

/** How many are below a bound, one of LATENCY_BOUNDS. */
function below(buckets: readonly number[], bound: number): number {
  const end = LATENCY_BOUNDS.indexOf(bound) + 1
  return buckets.slice(0, end).reduce((all, one) => all + one, 0)
}
