import type { Bytes, Clock, DevId } from '../../src/base/index.js'
import { ThinMetadata } from '../../src/metadata/index.js'
import { type JournalFile, type PoolOptions, ThinPool } from '../../src/pool/index.js'
import { MemoryStore } from './memory-store.js'

/** A journal in memory. `reboot` gives it to the next boot, which must ignore its changes. */
export class MemoryJournal implements JournalFile {
  bootId: string
  content: Buffer<ArrayBufferLike>

  constructor(bootId = 'boot-1', content: Buffer<ArrayBufferLike> = Buffer.alloc(0)) {
    this.bootId = bootId
    this.content = content
  }

  readAll(): Buffer {
    return this.content
  }

  append(bytes: Uint8Array, length: number): void {
    this.content = Buffer.concat([this.content, bytes.subarray(0, length)])
  }

  cut(length: number): void {
    this.content = this.content.subarray(0, length)
  }

  replace(bytes: Uint8Array): void {
    this.content = Buffer.from(bytes)
  }

  async sync(): Promise<void> {}

  copy(bootId = this.bootId): MemoryJournal {
    return new MemoryJournal(bootId, this.content)
  }
}

/** A clock that stands still until `advance`. */
export class TestClock implements Clock {
  #now = 0
  readonly #timers = new Set<{ at: number; fn: () => void }>()

  /** Milliseconds that pass with each look: with 1, long work gives way after two pieces. */
  lookMs = 0

  now(): number {
    this.#now += this.lookMs
    return this.#now
  }

  after(ms: number, fn: () => void): () => void {
    const timer = { at: this.#now + ms, fn }
    this.#timers.add(timer)
    return () => this.#timers.delete(timer)
  }

  yield(_urgent?: boolean): Promise<void> {
    return new Promise(resolve => setImmediate(resolve))
  }

  advance(ms: number): void {
    this.#now += ms
    for (const timer of [...this.#timers]) {
      if (timer.at > this.#now) continue
      this.#timers.delete(timer)
      timer.fn()
    }
  }
}

/** The files of a pool in memory. */
export interface MemoryFiles {
  metadata: MemoryStore
  data: MemoryStore
  journal: MemoryJournal
}

export interface Recorded {
  modes: string[]
  errors: string[]
  lowWater: number[]
  lowWaterMetadata: number[]
  /** Device ids of those that were refused a block for their limit. */
  limits: number[]
  warnings: string[]
  extended: [part: string, size: number][]
  lost: string[]
  /** Whether needs_check was cleared. */
  cleared: boolean
}

/** The files as the next process of this boot finds them. */
export const killed = ({ metadata, data, journal }: MemoryFiles): MemoryFiles => ({
  metadata: metadata.reopen(),
  data: data.reopen(),
  journal: journal.copy(),
})

/** Formatted files: `dataBlocks` of `blockSectors`, and `metadataBlocks` of 4 KiB. */
export function formatted(options: {
  blockSectors: number
  dataBlocks: number
  metadataBlocks?: number
  punches?: boolean
}): MemoryFiles {
  const metadata = new MemoryStore((options.metadataBlocks ?? 1024) * 4096, { path: 'metadata' })
  ThinMetadata.format(metadata, { dataBlockSectors: options.blockSectors })
  const size = options.dataBlocks * options.blockSectors * 512
  const data = new MemoryStore(size, { path: 'data', punches: options.punches ?? true })
  return { metadata, data, journal: new MemoryJournal() }
}

/** Opens files; what the pool tells goes to `recorded`. */
export async function openFiles(
  files: Pick<PoolOptions, 'metadata' | 'data' | 'journal'>,
  options: Partial<PoolOptions> = {},
): Promise<{ pool: ThinPool; clock: TestClock; recorded: Recorded }> {
  const clock = new TestClock()
  const recorded: Recorded = {
    ...{ modes: [], errors: [], lowWater: [], lowWaterMetadata: [], warnings: [], extended: [] },
    limits: [],
    lost: [],
    cleared: false,
  }
  const pool = await ThinPool.open({
    ...files,
    readOnly: false,
    discards: 'passdown',
    onFull: 'error',
    lowWaterMark: 0,
    clock,
    events: {
      mode: mode => recorded.modes.push(mode),
      lowWater: free => recorded.lowWater.push(free),
      lowWaterMetadata: free => recorded.lowWaterMetadata.push(free),
      warning: what => recorded.warnings.push(what),
      limitReached: id => recorded.limits.push(id),
      extended: (part, size) => recorded.extended.push([part, size]),
      needsCheckCleared: () => {
        recorded.cleared = true
      },
      lost: why => recorded.lost.push(why.code),
      slowCommit: () => {},
      ioError: (operation, error) => recorded.errors.push(`${operation}: ${error}`),
    },
    ...options,
  })
  return { pool, clock, recorded }
}

/** Data blocks that are free but not holes, and the other way round what must never be: none. */
export function staleFreeBlocks(pool: ThinPool, data: MemoryStore): number[] {
  const stale: number[] = []
  pool.metadata.forEachFreeRun((begin, end) => {
    for (let block = begin; block < end; block++) {
      const at = (block * pool.blockSize) as Bytes
      if (data.nextData(at) < at + pool.blockSize) stale.push(block)
    }
  })
  return stale
}

export const devId = (n: number): DevId => n as DevId
