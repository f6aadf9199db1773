import { IoCounters } from '../base/index.js'
import type { PoolWork, ThinPool } from '../pool/index.js'
import type { CacheCounts } from '../storage/index.js'
import type { Tenancy } from '../tenancy/index.js'
import type { PoolStatistics, TenancyStatistics } from './admin.js'
import { tenancyInfo } from './pool-status.js'
import type { VolumeSet } from './volume-set.js'

/**
 * The counters of a mounted pool. An engine that takes another's place goes on from where that was:
 * counters never go back, so that whoever computes rates needs to know of no engine.
 */
export class Statistics {
  readonly #name: string
  readonly #pool: ThinPool
  readonly #set: VolumeSet
  readonly #tenancy: Tenancy | null
  /** Seconds since 1970: when the counters were 0. */
  #since: number
  /** The counts of the engines before this one. */
  #workBefore: PoolWork = { commits: 0, commitMs: 0, punches: 0, punchedBytes: 0, spaceWaits: 0 }
  #cacheBefore: CacheCounts | null = null
  #engineRestarts = 0

  /** @param since seconds since 1970 */
  constructor(
    name: string,
    pool: ThinPool,
    set: VolumeSet,
    since: number,
    tenancy: Tenancy | null,
  ) {
    this.#name = name
    this.#pool = pool
    this.#set = set
    this.#tenancy = tenancy
    this.#since = since
  }

  /**
   * Goes on from where the engine before was. A volume that has another name since, or that was
   * made since, begins at 0.
   */
  resume({ before, engineRestarts }: StatisticsBefore): void {
    const { counted } = this.#set
    this.#engineRestarts = engineRestarts
    if (before === null) return
    this.#since = before.since
    this.#workBefore = before.work
    this.#cacheBefore = before.cache ?? null
    counted.add(before.io)
    for (const { devId, name, io } of before.volumes) {
      const volume = this.#set.byDevId(devId)
      if (volume?.name !== name || io === null) continue
      counted.subtract(io)
      volume.counters.add(io)
    }
  }

  /** The cache before data on another machine; null where the data is here. */
  get cache(): CacheCounts | null {
    const now = this.#pool.blocks.cacheCounts
    return now && this.#cacheBefore ? cacheSum(this.#cacheBefore, now) : now
  }

  get now(): PoolStatistics {
    const pool = this.#pool
    const { metadata, space, blockSize } = pool
    const shown = [...this.#set.named()].filter(({ device }) => !device.gone)
    const all = new IoCounters()
    all.addAll(this.#set.counted)
    for (const { counters } of this.#set.all()) all.addAll(counters)
    return {
      name: this.#name,
      mode: pool.mode,
      time: Date.now(),
      since: this.#since,
      engineRestarts: this.#engineRestarts,
      dataBlockSize: blockSize,
      data: {
        blocks: metadata.nrDataBlocks,
        usedBlocks: metadata.nrAllocatedDataBlocks,
        hostFree: space.data.hostRoom,
      },
      metadata: {
        blocks: metadata.nrMetadataBlocks,
        usedBlocks: metadata.nrAllocatedMetadataBlocks,
        hostFree: space.metadata.hostRoom,
      },
      lowWaterMarkBlocks: space.data.lowWaterMark,
      metadataLowWaterMarkBlocks: space.metadata.lowWaterMark,
      writesWaiting: space.writesWaiting,
      io: all.counts,
      work: sumOf(this.#workBefore, pool.work),
      cache: this.cache,
      ...(this.#tenancy && { tenancy: statisticsOf(this.#tenancy) }),
      volumes: shown
        .sort((a, b) => (a.name < b.name ? -1 : 1))
        .map(({ name, devId, device, opens, counters }) => ({
          name,
          devId,
          size: device.size,
          mapped: metadata.details(device.devId).mappedBlocks * blockSize,
          open: opens > 0,
          io: counters.isEmpty ? null : counters.counts,
        })),
    }
  }
}

/** The facts that an engine needs to take another's place. */
export interface StatisticsBefore {
  /** The last that is known of the counters; null when nothing is. */
  before: PoolStatistics | null
  /** How many engines there were before this one. */
  engineRestarts: number
}

const statisticsOf = (tenancy: Tenancy): TenancyStatistics => ({
  ...tenancyInfo(tenancy),
  ...tenancy.counts,
})

const sumOf = (one: PoolWork, other: PoolWork): PoolWork => ({
  commits: one.commits + other.commits,
  commitMs: Math.round((one.commitMs + other.commitMs) * 1000) / 1000,
  punches: one.punches + other.punches,
  punchedBytes: one.punchedBytes + other.punchedBytes,
  spaceWaits: one.spaceWaits + other.spaceWaits,
})

/** The counters of both; how the cache is, is as of now. */
const cacheSum = (one: CacheCounts, now: CacheCounts): CacheCounts => ({
  ...now,
  hits: one.hits + now.hits,
  misses: one.misses + now.misses,
  aheadUsedBytes: one.aheadUsedBytes + now.aheadUsedBytes,
  aheadWastedBytes: one.aheadWastedBytes + now.aheadWastedBytes,
  sentBytes: one.sentBytes + now.sentBytes,
  sentRequests: one.sentRequests + now.sentRequests,
  flushes: one.flushes + now.flushes,
  reconnects: one.reconnects + now.reconnects,
})
