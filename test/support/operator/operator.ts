/** Somebody who uses a pool as people do, and what he can do with it. */
import { basename } from 'node:path'
import type { Random } from '../random.js'
import {
  type Ended,
  errnoOfLine,
  type FileAnswer,
  FileHands,
  type FileRequest,
  type Interruption,
  runThinfs,
} from './hands.js'
import type { Deed, ModelVolume, Tag } from './model.js'
import { isUnknown, type Listing, Violation, type World } from './world.js'

/** Something that an operator does, now and then. */
export interface Action {
  name: string
  /** How often, next to the others. */
  weight: number
  /**
   * Whether others may act meanwhile (default), or nobody does (`alone`), or nobody begins to and
   * whoever is at it may fail (`outage`).
   */
  manner?: 'alone' | 'outage'
  can?(operator: Operator): boolean
  run(operator: Operator): Promise<unknown>
}

/** A command that changes something. */
export interface Change {
  args: readonly string[]
  /** What it changes. */
  volumes?: readonly ModelVolume[]
  /** It was carried out. */
  done?(stdout: string): void
  /** Nobody knows whether it was; who looks sees this. */
  look?(listing: Listing): void
  /** Errnos that are right as well. */
  refusals?: readonly string[]
  interruption?: Interruption
}

/** What people can have in the way of each other. */
const RACES = ['ENOENT', 'EBUSY', 'ENODATA', 'EEXIST', 'ESTALE', 'EINVAL']
/** A pool that is less full than this has a block for everybody. */
const FULL = 0.5

export class Operator {
  /** Begins the names of his volumes. */
  readonly id: string
  readonly world: World
  readonly hands: FileHands
  random: Random

  constructor(id: string, world: World, random: Random) {
    this.id = id
    this.world = world
    this.random = random
    this.hands = new FileHands(world.pool.path)
  }

  say(line: string): void {
    this.world.say(this.id, line)
  }

  /** His volumes, of which everything is known. */
  get own(): ModelVolume[] {
    return [...this.world.model.volumes].filter(
      ({ owner, isCertain }) => owner === this.id && isCertain,
    )
  }

  /** Those of others. */
  get others(): ModelVolume[] {
    return [...this.world.model.volumes].filter(
      ({ owner, isCertain }) => owner !== this.id && isCertain,
    )
  }

  /** The pool, in one of the ways that it can be named. */
  get poolArg(): string {
    const { folder, path } = this.world.pool
    return this.random.of([folder, folder, `${folder}/pool.yaml`, path])
  }

  newName(): string {
    return this.world.model.nextName(this.id)
  }

  /** A device id, most likely of no device: those that are given by the pool follow the largest. */
  newDevId(): number {
    return this.random.between(1, 16_000_000)
  }

  /** Tags of a new write of his. */
  tags(volume: ModelVolume, block: number, count: number): Tag[] {
    const sequence = this.world.model.nextSequence()
    return Array.from({ length: count }, (_, index) => `${volume.id}.${sequence}.${block + index}`)
  }

  async command(args: readonly string[], interruption?: Interruption): Promise<Ended> {
    const what = args.map(arg => (arg.includes('/') ? basename(arg) : arg)).join(' ')
    this.say(`thinfs ${what}${interruption ? ` (${interruption.signal})` : ''}`)
    const ended = await runThinfs(args, interruption)
    const { status, signal, stderr } = ended
    this.say(`  ${args[0]}: ${signal ?? status} ${stderr.trim()}`)
    if (status > 0 && errnoOfLine(stderr) === null && !interruption && !isUsage(ended)) {
      throw new Violation(`thinfs ${what}: not one clear line: ${JSON.stringify(stderr)}`)
    }
    return ended
  }

  /** @returns whether it was carried out; null when nobody knows yet */
  async change(change: Change): Promise<boolean | null> {
    const { args, volumes = [], refusals = [], interruption } = change
    const result = await this.world.doing(volumes, async deed => {
      const ended = await this.command(args, interruption)
      if (isUnknown(ended)) {
        for (const volume of volumes) volume.pending = true
        this.world.ask(listing => {
          for (const volume of volumes) volume.pending = false
          change.look?.(listing)
        })
        return null
      }
      if (ended.status === 0) {
        change.done?.(ended.stdout)
        return true
      }
      this.world.counts.refusals++
      const errno = errnoOfLine(ended.stderr) ?? ''
      if (refusals.includes(errno) || (await this.isExcused(errno, deed))) return false
      throw new Violation(`thinfs ${args.join(' ')}: refused: ${ended.stderr}`)
    })
    if (result === null) await this.world.settle()
    return result
  }

  /** A command that has to be refused, with one of some errnos or any. */
  async mustBeRefused(args: readonly string[], errnos: readonly string[] = []): Promise<void> {
    await this.world.doing([], async deed => {
      const ended = await this.command(args)
      if (isUnknown(ended) || deed.broken) return
      const { status, stderr } = ended
      if (status === 0) throw new Violation(`thinfs ${args.join(' ')}: not refused`)
      this.world.counts.refusals++
      if (errnos.length === 0) return
      const errno = errnoOfLine(stderr) ?? ''
      if (errnos.includes(errno)) return
      throw new Violation(`thinfs ${args.join(' ')}: ${errnos.join(' or ')} is not: ${stderr}`)
    })
  }

  /** Asks for something in the mount; an errno that nothing excuses is a violation. */
  async file(
    request: FileRequest,
    deed: Deed,
    refusals: readonly string[] = [],
  ): Promise<FileAnswer> {
    const { tags, ...rest } = request
    const what = JSON.stringify(tags ? { ...rest, tag: tags[0], count: tags.length } : rest)
    this.say(what)
    const answer = await this.hands.ask(request)
    const { flushed = 'ok' } = answer
    const errno = answer.errno ?? (flushed === 'ok' ? undefined : flushed)
    if (errno === undefined) return answer
    this.say(`  ${request.do} ${request.name}: ${errno}`)
    if (refusals.includes(errno) || (await this.isExcused(errno, deed))) return answer
    throw new Violation(`${what}: ${errno}`)
  }

  /** Whether somebody who looks around understands why he was refused. */
  async isExcused(errno: string, deed: Deed): Promise<boolean> {
    if (deed.broken || (deed.raced && RACES.includes(errno))) return true
    if (errno !== 'ENOSPC') return false
    if (deed.scarce) return true
    const { mode, data, metadata } = await this.world.status()
    const isFull = ({ blocks, usedBlocks }: { blocks: number; usedBlocks: number }): boolean =>
      usedBlocks / blocks > FULL
    return mode !== 'write' || isFull(data) || isFull(metadata) || deed.scarce || deed.broken
  }

  /** @throws Violation with differences, when there are any */
  mustBeRight(differences: readonly string[]): void {
    if (differences.length === 0) return
    throw new Violation(`${differences.slice(0, 10).join('\n')}\n(${differences.length} such)`)
  }

  close(): void {
    this.hands.end()
  }
}

/** Whether commander has refused the words of a command: its lines have no errno. */
const isUsage = ({ status, stderr }: Ended): boolean =>
  status === 2 && /^thinfs: [^\n]+\n$/.test(stderr)
