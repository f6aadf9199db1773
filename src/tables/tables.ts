/**
 * The devices and their tables: TableEngine in this process.
 *
 * Each device carries out its requests in order; devices do not wait for each other. While a device
 * waits to be suspended, only its own later requests wait.
 */
import { type DevId, MAX_DEV_ID, refused, SECTOR_SIZE, ThinfsError } from '../base/index.js'
import type { PoolEvents } from '../pool/index.js'
import { SharedFiles } from '../storage/index.js'
import { ErrorTarget } from './error.js'
import { ThinWithOrigin } from './external-origin.js'
import { GatedDevice } from './gated-device.js'
import { LinearTarget } from './linear.js'
import { LivePools } from './live-pool.js'
import { checkPoolTable, PoolTarget } from './pool-target.js'
import { type OpenSource, openSource } from './source.js'
import { StripedTarget } from './striped.js'
import { Table } from './table.js'
import type { Source, TableEngine, TableEvents, Target } from './table-engine.js'
import type { TargetDevice } from './target-device.js'
import { ThinTarget } from './thin-target.js'
import { ZeroTarget } from './zero.js'

export interface TablesOptions {
  /** Journals of pools go to `pools/` below it. */
  folder: string
  /** Whether devices were open in a process that has died, and are in use. */
  takesOver(): boolean
  events: Pick<TableEvents, 'event'>
  /** Receives the events of a device's pool. */
  poolEvents(minor: number): PoolEvents
}

/** Milliseconds for which the files of a dead process may still be locked. */
const PATIENCE = 10_000
const ASK_AGAIN = 50

export class Tables implements TableEngine {
  readonly #files = new SharedFiles()
  readonly #devices = new Map<number, GatedDevice>()
  readonly #last = new Map<number, Promise<unknown>>()
  readonly #pools: LivePools
  readonly #options: TablesOptions

  constructor(options: TablesOptions) {
    this.#options = options
    this.#pools = new LivePools({
      folder: options.folder,
      files: this.#files,
      takesOver: options.takesOver,
      onEvent: minor => options.events.event(minor),
      events: options.poolEvents,
    })
  }

  /** Undefined when there is none. */
  find(minor: number): GatedDevice | undefined {
    return this.#devices.get(minor)
  }

  all(): Iterable<GatedDevice> {
    return this.#devices.values()
  }

  /** @throws BAD_ARGUMENT, ENODEV */
  device(minor: number): GatedDevice {
    const device = this.#devices.get(minor)
    if (device === undefined) throw refused('ENODEV', `no device ${minor}`)
    return device
  }

  // --- TableEngine ---

  create(minor: number): Promise<void> {
    return this.#exclusive(minor, async () => {
      if (this.#devices.has(minor)) throw refused('EBUSY', `device ${minor} is there`)
      this.#devices.set(minor, new GatedDevice(minor))
    })
  }

  remove(minor: number): Promise<void> {
    return this.#exclusive(minor, async () => {
      const device = this.device(minor)
      this.#devices.delete(minor)
      await device.close()
    })
  }

  load(minor: number, table: Target[], readOnly: boolean): Promise<void> {
    return this.#exclusive(minor, async () => {
      const device = this.device(minor)
      await device.load(await this.#open(minor, table, readOnly))
    })
  }

  clear(minor: number): Promise<void> {
    return this.#exclusive(minor, () => this.device(minor).clear())
  }

  suspend(minor: number, flush: boolean): Promise<void> {
    return this.#exclusive(minor, () => this.device(minor).suspend(flush))
  }

  resume(minor: number): Promise<{ size: number }> {
    return this.#exclusive(minor, async () => {
      const device = this.device(minor)
      await device.resume()
      return { size: device.size }
    })
  }

  async message(minor: number, sector: number, words: string[]): Promise<string | null> {
    const target = this.device(minor).live?.targetAt(sector * SECTOR_SIZE)
    if (target?.message === undefined) throw refused('EINVAL', 'no target that takes messages')
    await target.message(words.join(' '))
    return null
  }

  async status(minor: number, flush: boolean): Promise<string[]> {
    const device = this.device(minor)
    const lines: string[] = []
    for (const target of device.live?.targets ?? []) {
      lines.push((await target.status?.(flush && !device.isSuspended)) ?? '')
    }
    return lines
  }

  // --- all of them ---

  /** Makes everything that was acknowledged durable where that is possible. */
  commit(): Promise<void> {
    return this.#pools.commit()
  }

  /** Closes all devices and pools. @throws the first failure, when all are closed */
  async close(): Promise<void> {
    const closed = await Promise.allSettled([...this.#devices.keys()].map(n => this.remove(n)))
    for (const end of closed) if (end.status === 'rejected') throw end.reason
  }

  // --- inside ---

  #exclusive<T>(minor: number, work: () => Promise<T>): Promise<T> {
    const next = (this.#last.get(minor) ?? Promise.resolve()).then(work)
    const ended = next.then(
      () => {},
      () => {},
    )
    this.#last.set(minor, ended)
    ended.then(() => {
      if (this.#last.get(minor) === ended) this.#last.delete(minor)
    })
    return next
  }

  async #open(minor: number, table: Target[], readOnly: boolean): Promise<Table> {
    const targets: TargetDevice[] = []
    try {
      for (const target of table) targets.push(await this.#openTarget(minor, target, readOnly))
      return new Table(targets, readOnly)
    } catch (err) {
      await Promise.allSettled(targets.map(target => target.close()))
      throw err
    }
  }

  async #openTarget(minor: number, target: Target, readOnly: boolean): Promise<TargetDevice> {
    if (!this.#options.takesOver()) return this.#openNow(minor, target, readOnly)
    for (let left = PATIENCE; ; left -= ASK_AGAIN) {
      try {
        return await this.#openNow(minor, target, readOnly)
      } catch (err) {
        const isHeld = err instanceof ThinfsError && err.code === 'POOL_IN_USE'
        if (!isHeld || left <= 0) throw err
        await new Promise(resolve => setTimeout(resolve, ASK_AGAIN))
      }
    }
  }

  async #openNow(minor: number, target: Target, readOnly: boolean): Promise<TargetDevice> {
    const size = target.length * SECTOR_SIZE
    switch (target.type) {
      case 'zero':
        return new ZeroTarget(size)
      case 'error':
        return new ErrorTarget(size)
      case 'linear':
        return new LinearTarget(size, openSource(target.source, this, this.#files, readOnly))
      case 'striped':
        return this.#openStriped(target, size, readOnly)
      case 'thin-pool': {
        checkPoolTable(target)
        const live = await this.#pools.take(minor, target)
        return new PoolTarget(live, target, this.#pools)
      }
      case 'thin': {
        if (!(target.devId >= 0 && target.devId <= MAX_DEV_ID))
          throw refused('EINVAL', 'Invalid device id')
        const pool = this.device(target.pool).live?.targets[0]
        const isPool = pool instanceof PoolTarget && pool.live.pool.mode !== 'fail'
        if (!isPool) throw refused('EINVAL', `device ${target.pool} is no pool that serves`)
        const thin = new ThinTarget(size, pool.live, target.devId as DevId, this.#pools)
        if (this.device(target.pool).isSuspended) {
          await thin.close()
          throw refused('EINVAL', 'Unable to activate thin device while pool is suspended')
        }
        if (target.externalOrigin === undefined) return thin
        return this.#withOrigin(thin, target.externalOrigin)
      }
    }
  }

  async #withOrigin(thin: ThinTarget, source: Source): Promise<ThinWithOrigin> {
    let origin: OpenSource | null = null
    try {
      origin = openSource(source, this, this.#files, true)
      return new ThinWithOrigin(thin, origin)
    } catch (err) {
      origin?.close()
      await thin.close()
      throw err
    }
  }

  #openStriped(
    { chunk, stripes }: Extract<Target, { type: 'striped' }>,
    size: number,
    readOnly: boolean,
  ): StripedTarget {
    const isWhole =
      chunk > 0 && stripes.length > 0 && size % (chunk * SECTOR_SIZE * stripes.length) === 0
    if (!isWhole) throw refused('EINVAL', 'Target length not divisible by chunk size')
    const open: OpenSource[] = []
    try {
      for (const stripe of stripes) open.push(openSource(stripe, this, this.#files, readOnly))
      return new StripedTarget(size, chunk * SECTOR_SIZE, open)
    } catch (err) {
      for (const source of open) source.close()
      throw err
    }
  }
}
