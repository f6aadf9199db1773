/** A pool as `thinfs serve` sees it: asked again and again, mounted or not. */
import { setTimeout as sleep } from 'node:timers/promises'
import type { Happening } from '../control/index.js'
import type { BlockMap, PoolStatistics, PoolStatus, VolumeInfo } from '../volumes/index.js'
import { History } from './history.js'
import { type PoolRates, ratesOf } from './rates.js'

/** The daemon of a pool, as far as it is asked. */
export interface WatchedPool {
  statistics(): Promise<PoolStatistics>
  status(): Promise<PoolStatus>
  list(request: { exclusive?: boolean }): Promise<VolumeInfo[]>
  blockMap(request: { cells: number }): Promise<BlockMap>
  events(request: { after?: number; waits?: boolean }): Promise<{
    events: Happening[]
    last: number
    ended: boolean
  }>
  close(): void
}

/** Milliseconds between two looks: while somebody looks at the page, and while nobody does. */
const LIVE_PERIOD = 1000
const IDLE_PERIOD = 10_000
/** Milliseconds after which a pool that is not mounted is looked for again. */
const RETRY = 1000
/**
 * Milliseconds for which a map of the blocks is good, and at least so many times as long as
 * counting took: it costs the engine something.
 */
const MAP_AGE = 15_000
const MAP_AGE_FACTOR = 20
/** Events that are kept, as many as the daemon keeps. */
const EVENTS_KEPT = 256
/** Cells of the map. */
export const CELLS = 4096

export interface WatchListener {
  /** Null when the pool is not mounted any more. */
  rates(rates: PoolRates | null): void
  happened(event: Happening): void
}

export class Watch {
  readonly history = new History()
  readonly events: Happening[] = []
  readonly #connect: () => Promise<WatchedPool | null>
  readonly #listener: WatchListener
  #pool: WatchedPool | null = null
  #connecting: Promise<WatchedPool | null> | null = null
  #before: PoolStatistics | null = null
  #rates: PoolRates | null = null
  #map: { begun: number; goodFor: number; map: Promise<BlockMap> } | null = null
  #isLive = false
  #wake = new AbortController()
  readonly #end = new AbortController()

  /** @param connect to the daemon; null while the pool is not mounted */
  constructor(connect: () => Promise<WatchedPool | null>, listener: WatchListener) {
    this.#connect = connect
    this.#listener = listener
  }

  /** The last rates; null while the pool is not mounted. */
  get rates(): PoolRates | null {
    return this.#rates
  }

  /** Looks every second from now on, or seldom. */
  set live(isLive: boolean) {
    if (isLive && !this.#isLive) this.#wake.abort()
    this.#isLive = isLive
  }

  /** Looks until `close`. */
  async run(): Promise<void> {
    await Promise.all([this.#sample(), this.#follow()])
  }

  close(): void {
    this.#end.abort()
    this.#wake.abort()
    this.#pool?.close()
  }

  /** Asks the daemon something. @returns null when the pool is not mounted */
  async ask<T>(question: (pool: WatchedPool) => Promise<T>): Promise<T | null> {
    const pool = await this.#connected()
    if (pool === null) return null
    try {
      return await question(pool)
    } catch (err) {
      this.#lost(pool)
      if ((err as { code?: unknown }).code === 'VERSION_MISMATCH') throw err
      return null
    }
  }

  /** The owners of the blocks, at most MAP_AGE ago. */
  async blockMap(): Promise<BlockMap | null> {
    const now = Date.now()
    if (this.#map === null || now - this.#map.begun > this.#map.goodFor) {
      const map = this.ask(pool => pool.blockMap({ cells: CELLS })).then(map => {
        if (map === null) throw new Error('not mounted')
        return map
      })
      const counted = { begun: now, goodFor: Number.POSITIVE_INFINITY, map }
      const ended = (): void => {
        counted.goodFor = Math.max(MAP_AGE, MAP_AGE_FACTOR * (Date.now() - now))
      }
      map.then(ended, ended)
      this.#map = counted
    }
    const { map } = this.#map
    return map.catch(() => {
      if (this.#map?.map === map) this.#map = null
      return null
    })
  }

  #connected(): Promise<WatchedPool | null> {
    if (this.#pool !== null) return Promise.resolve(this.#pool)
    this.#connecting ??= this.#connect()
      .then(pool => {
        if (this.#end.signal.aborted) pool?.close()
        else this.#pool = pool
        return this.#pool
      })
      .catch(() => null)
      .finally(() => {
        this.#connecting = null
      })
    return this.#connecting
  }

  #lost(pool: WatchedPool): void {
    if (this.#pool !== pool) return
    this.#pool = null
    this.#map = null
    pool.close()
  }

  async #sample(): Promise<void> {
    while (!this.#end.signal.aborted) {
      const after = await this.ask(pool => pool.statistics()).catch(() => null)
      const isNew = this.#before !== null && after !== null && after.since !== this.#before.since
      if (after === null || isNew) this.#before = null
      // Rates since the mount would be no rates of now.
      this.#rates = after === null ? null : ratesOf(this.#before ?? after, after)
      if (this.#rates !== null && this.#before !== null) this.history.add(this.#rates)
      this.#before = after
      this.#listener.rates(this.#rates)
      this.#wake = new AbortController()
      if (this.#end.signal.aborted) return
      const { signal } = this.#wake
      await sleep(this.#isLive ? LIVE_PERIOD : IDLE_PERIOD, undefined, { signal }).catch(() => {})
    }
  }

  async #follow(): Promise<void> {
    let after = 0
    while (!this.#end.signal.aborted) {
      const answer = await this.ask(pool => pool.events({ after, waits: after > 0 })).catch(
        () => null,
      )
      for (const event of answer?.events ?? []) {
        this.events.push(event)
        if (this.events.length > EVENTS_KEPT) this.events.shift()
        this.#listener.happened(event)
      }
      after = answer?.last ?? after
      if (answer !== null && !answer.ended) continue
      const { signal } = this.#end
      await sleep(RETRY, undefined, { signal }).catch(() => {})
    }
  }
}
