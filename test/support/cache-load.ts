/**
 * A process that reads and writes a remote store at random, against a copy in memory, until it is
 * killed. What it knows is in memory that its parent holds: which operations are under way, and the
 * copy. The next such process makes those again, as a kernel sends requests again to the next
 * engine.
 *
 *   cache-load.ts ADDRESS SEED OPERATIONS    with descriptors 3: cache, 4: state, 5: copy
 */
import assert from 'node:assert/strict'
import { fstatSync } from 'node:fs'
import { setTimeout as delay } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { bytes, KIB, parseNbdAddress, ThinfsError } from '../../src/base/index.js'
import { native } from '../../src/native.js'
import { NbdDisk } from '../../src/nbd/index.js'
import { RemoteStore } from '../../src/remote/index.js'
import { Random } from './random.js'

export const PROGRAM = fileURLToPath(import.meta.url)
const FD = { cache: 3, state: 4, copy: 5 } as const
const LANES = 12
export const STATE_SIZE = 4096
/** Places in the state, which is numbers: of counts, then of lanes. */
export const STATE = { done: 0, syncs: 1, reads: 2, lanes: 8 } as const
/** What data blocks are. */
export const BLOCK = 16 * KIB
const MOST = 8 * BLOCK

interface Operation {
  what: 'write' | 'read' | 'punch' | 'zero' | 'copy'
  offset: number
  length: number
  source: number
  fill: number
}

/** The operation of a number: any of those on a disk of `size` bytes. */
function operationOf(seed: number, size: number): Operation {
  const random = new Random(seed)
  const what = random.of(['write', 'write', 'read', 'read', 'punch', 'zero', 'copy'] as const)
  const unit = random.of([512, 4 * KIB, BLOCK])
  const length = unit * (1 + random.below(random.of([1, MOST / unit])))
  const place = (): number => unit * random.below((size - length) / unit + 1)
  const [offset, source, fill] = [place(), place(), 1 + random.below(255)]
  // Nothing is copied from a block to itself.
  const isApart = source + length + BLOCK <= offset || offset + length + BLOCK <= source
  return { what: what === 'copy' && !isApart ? 'write' : what, offset, length, source, fill }
}

/** Whether two operations have a block in common that one of them changes. */
function clash(one: Operation, other: Operation): boolean {
  const ranges = ({ what, offset, length, source }: Operation) => [
    { begin: offset, end: offset + length, writes: what !== 'read' },
    ...(what === 'copy' ? [{ begin: source, end: source + length, writes: false }] : []),
  ]
  const blocks = (begin: number, end: number) => [Math.floor(begin / BLOCK), Math.ceil(end / BLOCK)]
  return ranges(one).some(a =>
    ranges(other).some(b => {
      const [from, to] = blocks(a.begin, a.end)
      const [first, end] = blocks(b.begin, b.end)
      return (a.writes || b.writes) && from! < end! && first! < to!
    }),
  )
}

const isOfDisk = (err: unknown): boolean => err instanceof ThinfsError && err.code === 'IO_ERROR'

class Load {
  readonly #store: RemoteStore
  readonly #state: Float64Array
  readonly #copy: Uint8Array
  readonly #random: Random
  readonly #running = new Map<number, Operation>()
  #error: unknown = null

  constructor(store: RemoteStore, state: Float64Array, copy: Uint8Array, random: Random) {
    this.#store = store
    this.#state = state
    this.#copy = copy
    this.#random = random
  }

  /** @param most operations, of all processes together */
  async run(most: number): Promise<void> {
    for (let lane = 0; lane < LANES; lane++) {
      const seed = this.#state[STATE.lanes + lane]!
      if (seed !== 0) this.#begin(lane, operationOf(seed, this.#copy.length))
    }
    while (this.#state[STATE.done]! < most) {
      for (let lane = 0; lane < LANES; lane++) if (!this.#running.has(lane)) this.#choose(lane)
      if (this.#random.chance(0.02)) this.#sync()
      await new Promise(resolve => setImmediate(resolve))
      if (this.#error !== null) throw this.#error
    }
    while (this.#running.size > 0) await new Promise(resolve => setImmediate(resolve))
    await this.#again(() => this.#store.sync())
    if (this.#error !== null) throw this.#error
    await this.#read(0, this.#copy.length)
  }

  #choose(lane: number): void {
    const seed = 1 + this.#random.below(2 ** 31)
    const operation = operationOf(seed, this.#copy.length)
    for (const other of this.#running.values()) if (clash(operation, other)) return
    this.#state[STATE.lanes + lane] = seed
    this.#begin(lane, operation)
  }

  #begin(lane: number, operation: Operation): void {
    const { what, offset, length, source, fill } = operation
    if (what === 'write') this.#copy.fill(fill, offset, offset + length)
    else if (what === 'copy') this.#copy.copyWithin(offset, source, source + length)
    else if (what !== 'read') this.#copy.fill(0, offset, offset + length)
    this.#running.set(lane, operation)
    this.#again(() => this.#make(operation)).then(
      () => {
        this.#state[STATE.lanes + lane] = 0
        this.#state[STATE.done]!++
        this.#running.delete(lane)
      },
      err => {
        this.#error ??= err
      },
    )
  }

  async #make({ what, offset, length, source, fill }: Operation): Promise<void> {
    const [at, size] = [bytes(offset), bytes(length)]
    if (what === 'write') await this.#store.write(Buffer.alloc(length, fill), 0, length, at)
    else if (what === 'copy') await this.#store.copy(bytes(source), at, size)
    else if (what === 'read') await this.#read(offset, length)
    else await this.#store[what](at, size)
  }

  async #read(offset: number, length: number): Promise<void> {
    const found = Buffer.alloc(length)
    if (!this.#store.readNow(found, 0, length, bytes(offset))) {
      await this.#again(() => this.#store.readLater(found, 0, length, bytes(offset)))
    }
    const wanted = this.#copy.subarray(offset, offset + length)
    if (!found.equals(wanted)) {
      const at = found.findIndex((byte, i) => byte !== wanted[i])
      assert.fail(
        `${length} bytes at ${offset}: ${found[at]}, not ${wanted[at]}, at ${offset + at}`,
      )
    }
    this.#state[STATE.reads]!++
  }

  #sync(): void {
    this.#store.sync().then(
      () => {
        this.#state[STATE.syncs]!++
      },
      err => {
        if (!isOfDisk(err)) this.#error ??= err
      },
    )
  }

  /** The disk fails at random: what it refuses is asked for again. */
  async #again(call: () => Promise<void>): Promise<void> {
    for (;;) {
      try {
        return await call()
      } catch (err) {
        if (!isOfDisk(err)) throw err
      }
    }
  }
}

/** The server may be down when this process begins. */
async function opened(address: string): Promise<RemoteStore> {
  for (;;) {
    let disk: NbdDisk | null = null
    try {
      disk = await NbdDisk.connect(parseNbdAddress(address))
      return await RemoteStore.open({ disk, cache: FD.cache, granule: 4 * KIB })
    } catch (err) {
      disk?.close()
      if (!isOfDisk(err)) throw err
      await delay(10)
    }
  }
}

if (process.argv[1] === PROGRAM) {
  const [address, seed, most] = process.argv.slice(2)
  const state = new Float64Array(native.memory_map(FD.state, 0, STATE_SIZE))
  const { size } = fstatSync(FD.copy)
  const copy = new Uint8Array(native.memory_map(FD.copy, 0, size))
  const store = await opened(address!)
  await new Load(store, state, copy, new Random(Number(seed))).run(Number(most))
  store.close()
}
