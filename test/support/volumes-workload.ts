/** Random operations on the volumes of a PowerDisk and on a model of them. */
import { ThinMetadata } from '../../src/metadata/index.js'
import { MemoryStore } from './memory-store.js'
import { type Handles, PowerDisk, SparseImage } from './power-disk.js'
import type { Random } from './random.js'
import { type ModelVolume, VolumesModel, verifyFound } from './volumes-model.js'
import { type Opened, openVolumes, readVolumes } from './volumes-on-disk.js'

const BLOCK_SECTORS = 8
export const BLOCK = BLOCK_SECTORS * 512
const DATA_BLOCKS = 80
const MAX_DATA_BLOCKS = 112
const METADATA_BLOCKS = 192
const MAX_METADATA_BLOCKS = 224
/** No volume gets larger. */
const CAPACITY = 28 * BLOCK
const MAX_VOLUMES = 6
const NAMES = ['a', 'b', 'c', 'd', 'e', 'f', 'g', 'h']
const ROOT = 1
/** No volume's id in the model. */
const NOBODY = -1
const FIRST_VOLUME = 2
/** The one that is open at a time has it. */
const HANDLE = 1
const KEEP_SIZE = 1
const PUNCH_HOLE = 3
const ZERO_RANGE = 16
/**
 * What an operation may be refused with, in part done; a removal in the background moves the id on.
 */
const REFUSED = new Set([
  ...['NO_DATA_SPACE', 'NO_METADATA_SPACE', 'TRANSACTION_MISMATCH', 'POOL_SHRINKING'],
])

/** Operations and how often they come. */
const WEIGHTS = {
  write: 16,
  discard: 4,
  zeroRange: 2,
  preallocate: 1,
  copy: 4,
  truncate: 2,
  snapshot: 3,
  create: 2,
  remove: 1,
  unlinkOpen: 1,
  rename: 1,
  message: 1,
  flush: 3,
  flushLater: 3,
  tick: 2,
  growFile: 1,
  reopen: 1,
  reboot: 1,
  kill: 2,
  shrinkLater: 0,
} as const
type Kind = keyof typeof WEIGHTS
const LIFECYCLE: ReadonlySet<Kind> = new Set(['reopen', 'reboot', 'kill'])
const kindsOf = (weights: Record<Kind, number>): Kind[] =>
  (Object.keys(weights) as Kind[]).flatMap(kind =>
    Array.from({ length: weights[kind] }, () => kind),
  )
const KINDS = kindsOf(WEIGHTS)
const KINDS_WITH_SHRINKS = kindsOf({ ...WEIGHTS, shrinkLater: 5 })
/** What a shrink may end with, which nobody waits for. */
const SHRINK_ENDS = new Set([
  ...REFUSED,
  ...['POOL_SHRINKING', 'SNAPSHOT_HELD', 'BAD_ARGUMENT', 'NOT_MOUNTED'],
])

export class VolumesWorkload {
  readonly disk: PowerDisk
  readonly model = new VolumesModel()
  kills = 0
  bytesVerified = 0
  readonly #random: Random
  readonly #kinds: readonly Kind[]
  /** Shrinks that came to their end. */
  shrunk = 0
  #requests = 0
  #handles!: Handles
  #opened!: Opened
  /** Version of the model with all that was acknowledged. */
  #acknowledged = 0
  #nextId = 0
  #nextStamp = 0
  /** A flush that nobody waits for. */
  #flushing: Promise<void> = Promise.resolve()

  /** @param shrinks whether the data is made smaller, too, while all else goes on */
  constructor(random: Random, { shrinks = false }: { shrinks?: boolean } = {}) {
    this.#random = random
    this.#kinds = shrinks ? KINDS_WITH_SHRINKS : KINDS
    const metadata = new MemoryStore(METADATA_BLOCKS * 4096)
    ThinMetadata.format(metadata, { dataBlockSectors: BLOCK_SECTORS })
    const start = {
      metadata: new SparseImage(metadata.image),
      data: SparseImage.ofHoles(DATA_BLOCKS * BLOCK),
      journal: Buffer.alloc(0),
      table: null,
      label: null,
      boot: 1,
    }
    this.disk = new PowerDisk(start, random)
  }

  async run(steps: number): Promise<void> {
    await this.#open()
    await this.#step('create')
    for (let i = 0; i < steps; i++) {
      await this.#step(this.#random.of(this.#kinds))
      if (i % 10 === 0) this.#verify()
    }
    await this.#flushing
    this.#verify()
  }

  // --- the process ---

  async #open(): Promise<void> {
    if (this.#random.chance(0.2)) await this.#operations.growFile()
    this.#handles = this.disk.open()
    const discards = this.#random.chance(0.85) ? 'passdown' : 'nopassdown'
    // A process may be killed while it opens, too.
    if (this.kills > 0 && this.#random.chance(0.3)) this.disk.kill(this.#random.between(1, 20))
    const opening = openVolumes(this.#handles, discards)
    opening.catch(() => {})
    const opened = await Promise.race([opening, this.disk.death]).catch(err => {
      if (this.#handles.alive()) throw err
      return 'killed' as const
    })
    if (opened === 'killed') return this.#open()
    this.disk.spare()
    this.#opened = opened
  }

  /** Runs an operation that takes no part in the model. @returns whether the process outlived it */
  async #does(operation: () => unknown): Promise<boolean> {
    const work = (async () => {
      await operation()
      await this.#opened.fs.settle()
    })()
    work.catch(() => {})
    try {
      await Promise.race([work, this.disk.death])
    } catch (err) {
      if (this.#handles.alive()) throw err
    }
    return this.#handles.alive()
  }

  /**
   * Runs an operation that changes volumes as `change` does.
   * @param durable what becomes durable when it returns: nothing that is promised, or a change of
   * names, or of the size of a volume
   */
  async #changes(
    change: (volumes: Map<string, ModelVolume>) => void,
    operation: () => unknown,
    durable: null | 'names' | ModelVolume = null,
  ): Promise<void> {
    this.model.begin(this.disk.events.length, change)
    const { version } = this.model
    try {
      if (!(await this.#does(operation))) return
      const { length } = this.disk.events
      if (durable === 'names') this.model.changed(length, version, NOBODY)
      else if (durable !== null) this.model.changed(length, version, durable.id)
      this.#acknowledged = version
    } catch (err) {
      if (!REFUSED.has((err as { code: string }).code)) throw err
      await this.#does(() => {})
      this.#adoptFound()
    }
  }

  /** What is there now, which may be the work of an operation that was cut short, is the state. */
  #adoptFound(): void {
    const found = readVolumes(this.#opened)
    const named = verifyFound(found, this.model.since(this.#acknowledged))
    this.model.begin(this.disk.events.length, volumes => {
      volumes.clear()
      for (const [name, { devId, size, content }] of found) {
        const padded = Buffer.alloc(CAPACITY)
        content.copy(padded)
        volumes.set(name, { id: named.get(name)!.id, devId, size, content: padded })
        this.bytesVerified += size
      }
    })
    this.#acknowledged = this.model.version
  }

  #verify(): void {
    const found = readVolumes(this.#opened)
    verifyFound(found, this.model.since(this.model.version))
    for (const { size } of found.values()) this.bytesVerified += size
  }

  async #step(kind: Kind): Promise<void> {
    if (kind === 'kill') return this.#kill()
    if (kind === 'reopen' || kind === 'reboot') return this.#close(kind)
    await this.#operations[kind]()
  }

  async #close(kind: 'reopen' | 'reboot'): Promise<void> {
    await this.#flushing
    await this.#opened.volumes.close()
    this.model.flushed(this.disk.events.length, this.model.version)
    if (kind === 'reboot') this.disk.reboot()
    else this.disk.kill()
    await this.#open()
    this.#verify()
  }

  /** Kills the process between or in the middle of operations. */
  async #kill(): Promise<void> {
    this.disk.kill(this.#random.between(1, 40))
    for (let i = 0; i < 8 && this.#handles.alive(); i++) {
      let kind = this.#random.of(this.#kinds)
      while (LIFECYCLE.has(kind)) kind = this.#random.of(this.#kinds)
      await this.#step(kind)
    }
    if (this.#handles.alive()) this.disk.kill()
    this.#flushing = Promise.resolve()
    this.kills++
    await this.#open()
    this.#adoptFound()
  }

  // --- operations ---

  readonly #operations: Record<Exclude<Kind, 'reopen' | 'reboot' | 'kill'>, () => Promise<void>> = {
    write: async () => {
      const volume = this.#any()
      if (volume) await this.#write(volume, this.#ino(volume))
    },
    discard: async () => {
      const volume = this.#any()
      if (!volume || volume.size === 0) return
      const { offset, length } = this.#range(volume.size)
      await this.#changes(
        this.#zeroed(volume, offset, Math.min(length, volume.size - offset), volume.size),
        () => this.#opened.fs.fallocate(this.#ino(volume), PUNCH_HOLE, offset, length),
      )
    },
    zeroRange: async () => {
      const volume = this.#any()
      if (!volume) return
      const { offset, length } = this.#range(CAPACITY)
      await this.#changes(
        this.#zeroed(volume, offset, length, Math.max(volume.size, offset + length)),
        () => this.#opened.fs.fallocate(this.#ino(volume), ZERO_RANGE, offset, length),
      )
    },
    preallocate: async () => {
      const volume = this.#any()
      if (!volume) return
      const { offset, length } = this.#range(CAPACITY)
      await this.#changes(
        () => {},
        () => this.#opened.fs.fallocate(this.#ino(volume), KEEP_SIZE, offset, length),
      )
    },
    copy: async () => {
      const source = this.#any()
      const target = this.#any()
      if (!source || !target || source.size === 0) return
      const unit = this.#random.of([BLOCK, BLOCK, 512, 1])
      const align = (offset: number): number => Math.floor(offset / unit) * unit
      const from = align(this.#random.below(source.size))
      const to = align(this.#random.below(CAPACITY))
      const longest = Math.min(source.size - from, CAPACITY - to)
      const length = this.#random.between(1, longest)
      if (source === target && Math.abs(from - to) < length) return
      await this.#changes(
        volumes => {
          const content = Buffer.from(target.content)
          source.content.copy(content, to, from, from + length)
          const size = Math.max(target.size, to + length)
          volumes.set(this.#nameOf(target), { ...target, content, size })
        },
        () => {
          const { fs } = this.#opened
          return fs.copyFileRange(this.#ino(source), from, this.#ino(target), to, length)
        },
      )
    },
    truncate: async () => {
      const volume = this.#any()
      if (!volume) return
      const unit = this.#random.of([BLOCK, 512, 1])
      const size = Math.floor(this.#random.below(CAPACITY) / unit) * unit
      if (size === volume.size) return
      await this.#changes(
        this.#zeroed(volume, size, CAPACITY - size, size),
        () => this.#opened.fs.setattr(this.#ino(volume), { size }),
        volume,
      )
    },
    snapshot: async () => {
      const origin = this.#any()
      const name = this.#freeName()
      if (!origin || !name) return
      const devId = this.#newDevId()
      await this.#changes(
        volumes => volumes.set(name, { ...origin, id: this.#nextId++, devId }),
        () => this.#opened.volumes.snapshot({ origin: this.#nameOf(origin), name, devId }),
        'names',
      )
    },
    create: async () => {
      const name = this.#freeName()
      if (!name) return
      const devId = this.#newDevId()
      const size = this.#random.below(CAPACITY / 512 + 1) * 512
      await this.#changes(
        this.#made(name, devId, size),
        () => this.#opened.volumes.create({ name, size, devId }),
        'names',
      )
    },
    remove: async () => {
      const volume = this.#any()
      if (volume && this.model.volumes.size > 1) await this.#remove(volume)
    },
    unlinkOpen: async () => {
      const volume = this.#any()
      if (!volume || this.model.volumes.size < 2) return
      const name = this.#nameOf(volume)
      const ino = this.#ino(volume)
      if (!(await this.#does(() => this.#opened.fs.open(ino, 0, HANDLE)))) return
      await this.#changes(
        volumes => volumes.delete(name),
        () => this.#opened.fs.unlink(ROOT, name),
        'names',
      )
      if (!this.#handles.alive()) return
      const content = Buffer.alloc(BLOCK, 'unlinked')
      const refused = (err: { code: string }): void => {
        if (!REFUSED.has(err.code)) throw err
      }
      const write = async () => this.#opened.fs.write(ino, 0, BLOCK, content, 0)
      if (!(await this.#does(() => write().catch(refused)))) return
      await this.#does(() => this.#opened.fs.release(ino, HANDLE))
    },
    rename: async () => {
      const volume = this.#any()
      if (!volume) return
      const from = this.#nameOf(volume)
      const to = this.#random.of(NAMES)
      const other = this.model.volumes.get(to)
      if (from === to) return
      const exchanges = other !== undefined && this.#random.chance(0.5) && !from.startsWith('thin-')
      await this.#changes(
        volumes => {
          volumes.delete(from)
          volumes.set(to, volume)
          if (exchanges) volumes.set(from, other)
        },
        () => this.#opened.fs.rename(ROOT, from, ROOT, to, exchanges ? 2 : 0, ++this.#requests),
        'names',
      )
    },
    message: () => this.#message(),
    flush: async () => {
      const { version } = this.model
      if (await this.#does(() => this.#opened.fs.syncfs())) {
        this.model.flushed(this.disk.events.length, version)
      }
    },
    flushLater: async () => {
      const { version } = this.model
      const handles = this.#handles
      const flushed = this.#opened.fs.syncfs().then(
        () => {
          if (handles.alive()) this.model.flushed(this.disk.events.length, version)
        },
        err => {
          if (handles.alive()) throw err
        },
      )
      this.#flushing = Promise.all([this.#flushing, flushed]).then(() => {})
      this.#flushing.catch(() => {})
    },
    shrinkLater: async () => {
      const { volumes } = this.#opened
      const handles = this.#handles
      const { nrDataBlocks, nrAllocatedDataBlocks } = volumes.pool.metadata
      const blocks = this.#random.between(Math.max(1, nrAllocatedDataBlocks), nrDataBlocks)
      const shrunk = volumes.shrink({ data: blocks * BLOCK }).then(
        () => {
          this.shrunk++
        },
        err => {
          if (handles.alive() && !SHRINK_ENDS.has(err.code)) throw err
        },
      )
      this.#flushing = Promise.all([this.#flushing, shrunk]).then(() => {})
      this.#flushing.catch(() => {})
    },
    tick: async () => {
      await this.#does(() => this.#opened.clock.advance(1000))
    },
    growFile: async () => {
      const file = this.#random.of(['data', 'data', 'metadata'] as const)
      const max = file === 'data' ? MAX_DATA_BLOCKS * BLOCK : MAX_METADATA_BLOCKS * 4096
      const size = this.disk.now[file].bytes.length + this.#random.between(1, 8) * 4096
      if (size <= max) this.disk.grow(file, size)
    },
  }

  async #message(): Promise<void> {
    const { volumes, fs } = this.#opened
    const send = (message: string): Promise<void> => volumes.message({ message })
    const devId = this.#random.between(500, 503)
    const name = `thin-${devId}`
    switch (this.#random.below(4)) {
      case 0: {
        const held = volumes.pool.metadata.heldRoot !== 0
        const message = held ? 'release_metadata_snap' : 'reserve_metadata_snap'
        return this.#changes(
          () => {},
          () => send(message),
          'names',
        )
      }
      case 1: {
        const current = volumes.pool.metadata.transactionId
        const next = current + this.#random.between(-1, 2)
        if (next < 0) return
        return this.#changes(
          () => {},
          () => send(`set_transaction_id ${current} ${next}`),
          'names',
        )
      }
      case 2: {
        if (volumes.byDevId(devId) || this.model.volumes.size >= MAX_VOLUMES) return
        return this.#changes(
          this.#made(name, devId, 0),
          () => send(`create_thin ${devId}`),
          'names',
        )
      }
      default: {
        const volume = this.model.volumes.get(name)
        if (!volume || !fs.lookup(ROOT, name)) return
        return this.#changes(
          volumes => volumes.delete(name),
          () => send(`delete ${devId}`),
          'names',
        )
      }
    }
  }

  #remove(volume: ModelVolume): Promise<void> {
    const name = this.#nameOf(volume)
    return this.#changes(
      volumes => volumes.delete(name),
      () => {
        if (this.#random.chance(0.5)) return this.#opened.fs.unlink(ROOT, name)
        return this.#opened.volumes.remove({ names: [name] })
      },
      'names',
    )
  }

  async #write(volume: ModelVolume, ino: number): Promise<void> {
    const { offset, length } = this.#range(CAPACITY)
    // Each sector says who wrote it, and when.
    const stamp = `${this.#nextStamp++}:${this.#nameOf(volume)}`.padEnd(16)
    const sectors = Buffer.alloc(CAPACITY, stamp, 'latin1')
    await this.#changes(
      volumes => {
        const content = Buffer.from(volume.content)
        sectors.copy(content, offset, offset, offset + length)
        const size = Math.max(volume.size, offset + length)
        volumes.set(this.#nameOf(volume), { ...volume, content, size })
      },
      () => this.#opened.fs.write(ino, offset, length, sectors, offset),
    )
  }

  // --- choices ---

  #any(): ModelVolume | undefined {
    const { volumes } = this.model
    return volumes.size === 0 ? undefined : this.#random.of([...volumes.values()])
  }

  #nameOf(volume: ModelVolume): string {
    for (const [name, { id }] of this.model.volumes) if (id === volume.id) return name
    throw new Error('a volume of the past')
  }

  #ino({ devId }: ModelVolume): number {
    return devId + FIRST_VOLUME
  }

  #freeName(): string | undefined {
    const { volumes } = this.model
    if (volumes.size >= MAX_VOLUMES) return undefined
    return NAMES.find(name => !volumes.has(name))
  }

  /** Ids come again, as those do that thinfs chooses; one on its way out is taken. */
  #newDevId(): number {
    let devId = this.#random.below(8)
    while (this.#opened.volumes.pool.metadata.hasDevice(devId as never)) devId++
    return devId
  }

  /** A range within [0, limit), which is not 0, in blocks, sectors or bytes. */
  #range(limit: number): { offset: number; length: number } {
    const unit = this.#random.of([BLOCK, 512, 512, 1])
    const offset = Math.floor(this.#random.below(limit) / unit) * unit
    const length = Math.ceil(
      this.#random.between(1, this.#random.of([600, BLOCK, 6 * BLOCK])) / unit,
    )
    return { offset, length: Math.min(length * unit, limit - offset) }
  }

  #made(name: string, devId: number, size: number) {
    return (volumes: Map<string, ModelVolume>): void => {
      volumes.set(name, { id: this.#nextId++, devId, size, content: Buffer.alloc(CAPACITY) })
    }
  }

  #zeroed(volume: ModelVolume, offset: number, length: number, size: number) {
    return (volumes: Map<string, ModelVolume>): void => {
      const content = Buffer.from(volume.content).fill(0, offset, offset + length)
      volumes.set(this.#nameOf(volume), { ...volume, content, size })
    }
  }
}
