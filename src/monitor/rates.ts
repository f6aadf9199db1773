/** The work of a pool between two moments, from the counters of both. */
import {
  countsBetween,
  countsTogether,
  type IoCounts,
  METADATA_BLOCK_SIZE,
  meanOf,
  OPERATIONS,
  type Operation,
  type OperationCounts,
  quantileOf,
} from '../base/index.js'
import type { PoolStatistics, VolumeStatistics } from '../volumes/index.js'

export interface OperationRates {
  perSecond: number
  bytesPerSecond: number
  /** Milliseconds that a request took: in the mean, and what 50 and 99 of 100 stayed below. */
  meanMs: number
  p50Ms: number
  p99Ms: number
}

/** The rates of a volume, or of a pool. */
export interface IoRates extends Record<Operation, OperationRates> {
  /** Reads, writes, discards and flushes together. */
  all: OperationRates
  coldReadsPerSecond: number
}

export interface VolumeRates {
  name: string
  io: IoRates
  /** Bytes. */
  size: number
  mapped: number
  open: boolean
  /** Bytes of data blocks that the volume came to map; negative where it gave some back. */
  mappedPerSecond: number
}

export interface PoolRates {
  name: string
  mode: string
  /** The end of the time: seconds since 1970. */
  time: number
  /** How long it was. */
  seconds: number
  io: IoRates
  volumes: VolumeRates[]
  /** Bytes of the pool's data blocks. */
  used: number
  size: number
  /** Bytes that were taken and not given back; negative where more were given back. */
  usedPerSecond: number
  /** Until it is full at this rate; null when it does not fill. */
  secondsUntilFull: number | null
  metadataUsed: number
  metadataSize: number
  writesWaiting: number
  commitsPerSecond: number
  punchesPerSecond: number
  spaceWaitsPerSecond: number
  engineRestarts: number
  /** The cache before data on another machine; null where the data is here. */
  cache: CacheRates | null
}

export interface CacheRates {
  hitsPerSecond: number
  missesPerSecond: number
  /** Bytes that were read ahead: those that somebody asked for, and those that nobody did. */
  aheadUsedPerSecond: number
  aheadWastedPerSecond: number
  /** Bytes that were written back. */
  sentPerSecond: number
  flushesPerSecond: number
  /**
   * Bytes that no flush has covered, how many there may be, and what the disk takes in a second.
   */
  dirty: number
  dirtyLimit: number
  drainPerSecond: number
  writersWaiting: number
  /** Since the pool was mounted. */
  reconnects: number
}

const ZERO: OperationCounts = { count: 0, bytes: 0, ms: 0, buckets: [] }
const NOTHING: IoCounts = { read: ZERO, write: ZERO, discard: ZERO, flush: ZERO, coldReads: 0 }

/** Shorter times make rates of nothing. */
const SHORTEST = 0.001

/**
 * @param before null: since the counters were 0
 */
export function ratesOf(before: PoolStatistics | null, after: PoolStatistics): PoolRates {
  const begun = before === null ? after.since * 1000 : before.time
  const seconds = Math.max(SHORTEST, (after.time - begun) / 1000)
  const volumesBefore = new Map(before?.volumes.map(volume => [volume.devId, volume]))
  const { dataBlockSize, data, metadata, work } = after
  const free = (data.blocks - data.usedBlocks) * dataBlockSize
  const taken = before === null ? 0 : (data.usedBlocks - before.data.usedBlocks) * dataBlockSize
  const usedPerSecond = taken / seconds
  const perSecond = (of: (work: PoolStatistics['work']) => number): number =>
    Math.max(0, of(work) - (before === null ? 0 : of(before.work))) / seconds
  return {
    name: after.name,
    mode: after.mode,
    time: after.time / 1000,
    seconds,
    io: ioRates(before?.io ?? NOTHING, after.io, seconds),
    volumes: after.volumes.map(volume => {
      const last = volumesBefore.get(volume.devId)
      return volumeRates(last?.name === volume.name ? last : null, volume, seconds)
    }),
    used: data.usedBlocks * dataBlockSize,
    size: data.blocks * dataBlockSize,
    usedPerSecond,
    secondsUntilFull: usedPerSecond > 0 ? free / usedPerSecond : null,
    metadataUsed: metadata.usedBlocks * METADATA_BLOCK_SIZE,
    metadataSize: metadata.blocks * METADATA_BLOCK_SIZE,
    writesWaiting: after.writesWaiting,
    commitsPerSecond: perSecond(({ commits }) => commits),
    punchesPerSecond: perSecond(({ punches }) => punches),
    spaceWaitsPerSecond: perSecond(({ spaceWaits }) => spaceWaits),
    engineRestarts: after.engineRestarts,
    cache: cacheRates(before?.cache ?? null, after.cache ?? null, seconds),
  }
}

function cacheRates(
  before: PoolStatistics['cache'] | null,
  after: PoolStatistics['cache'] | null,
  seconds: number,
): CacheRates | null {
  if (!after) return null
  const perSecond = (of: (counts: NonNullable<typeof after>) => number): number =>
    Math.max(0, of(after) - (before ? of(before) : 0)) / seconds
  return {
    hitsPerSecond: perSecond(({ hits }) => hits),
    missesPerSecond: perSecond(({ misses }) => misses),
    aheadUsedPerSecond: perSecond(({ aheadUsedBytes }) => aheadUsedBytes),
    aheadWastedPerSecond: perSecond(({ aheadWastedBytes }) => aheadWastedBytes),
    sentPerSecond: perSecond(({ sentBytes }) => sentBytes),
    flushesPerSecond: perSecond(({ flushes }) => flushes),
    dirty: after.dirtyBytes,
    dirtyLimit: after.dirtyLimit,
    drainPerSecond: after.drainBytesPerSecond,
    writersWaiting: after.writersWaiting,
    reconnects: after.reconnects,
  }
}

function volumeRates(
  before: VolumeStatistics | null,
  after: VolumeStatistics,
  seconds: number,
): VolumeRates {
  const { name, size, mapped, open } = after
  return {
    name,
    io: ioRates(before?.io ?? NOTHING, after.io ?? NOTHING, seconds),
    ...{ size, mapped, open },
    mappedPerSecond: before === null ? 0 : (mapped - before.mapped) / seconds,
  }
}

function ioRates(before: IoCounts, after: IoCounts, seconds: number): IoRates {
  const between = countsBetween(before, after)
  const ofOne = (operation: Operation): OperationRates => ratesFrom(between[operation], seconds)
  return {
    read: ofOne('read'),
    write: ofOne('write'),
    discard: ofOne('discard'),
    flush: ofOne('flush'),
    all: ratesFrom(countsTogether(OPERATIONS.map(operation => between[operation])), seconds),
    coldReadsPerSecond: between.coldReads / seconds,
  }
}

const ratesFrom = (counts: OperationCounts, seconds: number): OperationRates => ({
  perSecond: counts.count / seconds,
  bytesPerSecond: counts.bytes / seconds,
  meanMs: meanOf(counts),
  p50Ms: quantileOf(counts, 0.5),
  p99Ms: quantileOf(counts, 0.99),
})
