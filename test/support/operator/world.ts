/**
 * The pool that operators work on, what it has to hold, and what happens to it meanwhile: outages,
 * a full disk, deaths. Quiet points compare all of it.
 */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import type { CheckReport, PoolStatus, VolumeInfo } from '../../../src/volumes/index.js'
import { daemonOf, runningEngine, serving } from '../engine-killer.js'
import { loopsWithin, type MountedPool, readIfThere } from '../mounted-pool.js'
import { Gate } from './gate.js'
import { type Ended, FileHands, runProgram, runThinfs } from './hands.js'
import { Deed, Model, type ModelVolume, UNIT } from './model.js'
import { patiently } from './patience.js'

/** Something is not as it has to be. */
export class Violation extends Error {}

export type Listing = readonly VolumeInfo[]

/** Resolves what nobody knows, when somebody has looked. */
type Question = (listing: Listing) => void

/** An engine that has lived so long has served, for its supervisor. */
const SERVICE_MS = 3300
/** Deaths in a row that no supervisor minds. */
const HARMLESS_DEATHS = 3
/** A command that was interrupted may be carried out a little later. */
const AFTERMATH_MS = 300
/** How often a command is tried again that may fail because engines are killed. */
const TRIES = 5

export class World {
  readonly pool: MountedPool
  readonly model = new Model()
  readonly gate = new Gate()
  /** What was done, for who wants to know how it came to this. */
  readonly trace: string[] = []
  readonly counts = { actions: 0, kills: 0, bytes: 0, quietPoints: 0, refusals: 0 }
  /** For looking at all volumes. */
  readonly #hands: FileHands
  readonly #begun = Date.now()
  readonly #deeds = new Set<Deed>()
  readonly #questions: Question[] = []
  #isBroken = false
  #isScarce = false
  #killing: Promise<unknown> = Promise.resolve()
  #deathsInARow = 0
  #lastDeath = 0

  constructor(pool: MountedPool) {
    this.pool = pool
    this.#hands = new FileHands(pool.path)
  }

  close(): void {
    this.#hands.end()
  }

  say(who: string, line: string): void {
    const seconds = ((Date.now() - this.#begun) / 1000).toFixed(2)
    this.trace.push(`${seconds} ${who}: ${line}`)
  }

  // --- what happens beside what ---

  /** Does something to volumes; knows afterwards what may excuse a failure. */
  async doing<T>(volumes: readonly ModelVolume[], work: (deed: Deed) => Promise<T>): Promise<T> {
    const deed = new Deed()
    deed.broken = this.#isBroken
    deed.scarce = this.#isScarce
    this.#deeds.add(deed)
    for (const { deeds } of volumes) {
      for (const other of deeds) {
        other.raced = true
        deed.raced = true
      }
      deeds.add(deed)
    }
    try {
      return await work(deed)
    } finally {
      this.#deeds.delete(deed)
      for (const { deeds } of volumes) deeds.delete(deed)
    }
  }

  /** While the pool is away, for its turn; whoever is inside of the gate may fail. */
  async outage(work: () => Promise<void>): Promise<void> {
    await this.killing(async () => {
      this.#isBroken = true
      for (const deed of this.#deeds) deed.broken = true
      await work()
      await this.gate.empty()
      this.#isBroken = false
    })
    await this.settle()
  }

  /** While the host's disk may be full. */
  async scarcity(work: () => Promise<void>): Promise<void> {
    this.#isScarce = true
    for (const deed of this.#deeds) deed.scarce = true
    try {
      await work()
    } finally {
      this.#isScarce = false
    }
  }

  /** One kills at a time. */
  async killing<T>(work: () => Promise<T>): Promise<T> {
    const turn = this.#killing.then(work)
    this.#killing = turn.catch(() => {})
    return await turn
  }

  // --- processes ---

  get daemonPid(): number {
    return daemonOf(this.pool)
  }

  get enginePids(): number[] {
    return this.pool
      .processes()
      .filter(pid => readIfThere(`/proc/${pid}/cmdline`).includes('engine/main.js'))
  }

  /** Kills the engine, but not more often than a supervisor takes for accidents. */
  async killEngine(): Promise<void> {
    if (Date.now() - this.#lastDeath > 2 * SERVICE_MS) this.#deathsInARow = 0
    if (this.#deathsInARow >= HARMLESS_DEATHS) {
      const engine = runningEngine(this.pool)
      await patiently('the next engine', serving(this.pool, engine))
      await delay(SERVICE_MS)
      this.#deathsInARow = 0
    }
    const engine = runningEngine(this.pool)
    if (engine === 0) return
    this.#deathsInARow++
    this.#lastDeath = Date.now()
    this.kill(engine)
  }

  kill(pid: number, signal: NodeJS.Signals = 'SIGKILL'): void {
    if (signal === 'SIGKILL') this.counts.kills++
    try {
      process.kill(pid, signal)
    } catch {
      // It has ended by itself.
    }
  }

  /** Until no process serves the pool. */
  async gone(): Promise<void> {
    while (this.pool.processes().length > 0) await delay(20)
  }

  // --- looking ---

  /** Runs a command that has to succeed, again when an engine died before it answered. */
  async mustSucceed(...args: string[]): Promise<string> {
    let ended: Ended | undefined
    for (let tries = 0; tries < TRIES; tries++) {
      ended = await runThinfs(args)
      if (ended.status === 0) return ended.stdout
      if (!isUnknown(ended)) break
    }
    throw new Violation(`${args.join(' ')}: ${ended!.status} ${ended!.stderr}`)
  }

  async list(): Promise<Listing> {
    return JSON.parse(await this.mustSucceed('list', this.pool.folder, '--json'))
  }

  async status(): Promise<PoolStatus> {
    return JSON.parse(await this.mustSucceed('status', this.pool.folder, '--json'))
  }

  async mount(): Promise<void> {
    await this.mustSucceed('mount', this.pool.folder, this.pool.path)
  }

  async umount(): Promise<void> {
    await this.mustSucceed('umount', this.pool.folder)
    this.model.flushed()
  }

  /** Takes a loop device away that no command would. */
  async detach(device: string): Promise<void> {
    // The number may be somebody else's by now.
    if (!loopsWithin(this.pool.base).includes(device)) return
    await runProgram('losetup', ['--detach', device])
  }

  /** Makes somebody look as soon as that is possible. */
  ask(question: Question): void {
    this.#questions.push(question)
  }

  /** Looks, when there is something that nobody knows. */
  async settle(): Promise<void> {
    if (this.#isBroken || this.#questions.length === 0) return
    const questions = this.#questions.splice(0)
    await delay(AFTERMATH_MS)
    const listing = await this.doing([], async deed => {
      const ended = await this.list().catch((err: unknown) => {
        if (deed.broken && err instanceof Violation) return null
        throw err
      })
      return deed.broken ? null : ended
    })
    if (listing === null) this.#questions.unshift(...questions)
    else for (const question of questions) question(listing)
  }

  /** Everything is compared and checked; nobody else may be inside of the gate. */
  async quietPoint(how: { unmount: boolean; withoutJournal?: boolean }): Promise<void> {
    this.counts.quietPoints++
    await this.settle()
    await this.verify(how.withoutJournal)
    await this.check()
    if (!how.unmount) return
    await this.umount()
    await this.thinCheck()
    await this.check()
    this.compareListing(await this.list())
    await this.mount()
    await this.verify()
  }

  async thinCheck(): Promise<void> {
    const { status, stderr, stdout } = await runProgram('thin_check', [this.pool.metadata])
    if (status !== 0) throw new Violation(`thin_check: ${stdout}${stderr}`)
  }

  async check(): Promise<void> {
    const args = ['check', this.pool.folder, '--deep', '--json']
    const { problems } = JSON.parse(await this.mustSucceed(...args)) as CheckReport
    if (problems.length > 0) throw new Violation(`check --deep: ${JSON.stringify(problems)}`)
  }

  /** Reads all volumes of the mounted pool. */
  async verify(withoutJournal = false): Promise<void> {
    const listing = await this.list()
    this.compareListing(listing, withoutJournal)
    const wrong: string[] = []
    for (const volume of this.model.volumes) {
      const { errno, size, tags } = await this.#hands.ask({ do: 'read', name: volume.name })
      if (errno !== undefined) throw new Violation(`${volume.name}: cannot be read: ${errno}`)
      this.counts.bytes += size!
      const differences = volume.compare({ size: size!, tags: tags! }, withoutJournal)
      if (differences.length > 0)
        wrong.push(...differences.slice(0, 5), `${differences.length} such`)
      if (withoutJournal) volume.flushed()
    }
    if (wrong.length > 0) throw new Violation(wrong.join('\n'))
  }

  /** Names, ids and sizes. */
  compareListing(listing: Listing, withoutJournal = false): void {
    const names = (found: Iterable<{ name: string }>): string =>
      [...found]
        .map(({ name }) => name)
        .sort()
        .join(' ')
    const [found, wanted] = [names(listing), names(this.model.volumes)]
    if (found !== wanted) throw new Violation(`volumes are ${found}, wanted ${wanted}`)
    for (const { name, devId, size } of listing) {
      const volume = this.model.find(name)!
      volume.devId ??= devId
      if (volume.devId !== devId) {
        throw new Violation(`${name}: device id is ${devId}, wanted ${volume.devId}`)
      }
      const sizes = withoutJournal ? volume.size.allowedWithoutJournal : volume.size.allowed
      if (!sizes.includes(size) || size % UNIT !== 0) {
        throw new Violation(`${name}: listed with ${size}, wanted ${sizes.join(' or ')}`)
      }
    }
  }

  /** The pool's log since it was made, its warnings and errors. */
  logged(): string[] {
    return readFileSync(join(this.pool.folder, 'thinfs.log'), 'utf8')
      .split('\n')
      .filter(line => /"level":(40|50|60)/.test(line))
  }
}

/** Whether a command has ended before it knew what it had done. */
export const isUnknown = ({ stderr, signal }: Ended): boolean =>
  signal !== null || /whether the request was carried out is not known/.test(stderr)
