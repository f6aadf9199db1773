/**
 * volumes.json: names and sizes of the volumes, which dm-thin leaves to its user.
 *
 * It works as Docker's and LVM's records do. The file carries the transaction id of the pool that
 * it belongs to and is replaced before the pool commits that id. If the machine stops in between,
 * the file is one ahead of the pool, and what the change did (`undo`) is taken back on the next
 * open.
 */
import * as z from 'zod'
import { ioError, isLost, MAX_DEV_ID, MAX_DEVICE_SIZE, ThinfsError } from '../base/index.js'
import { UNNAMED_PREFIX, whyNotAName } from '../config/index.js'
import type { CheckProblem } from './admin.js'

/** A file larger than this is not ours: a million volumes take less. */
const MAX_FILE_SIZE = 256 * 1024 * 1024

/** Owners have 32 bits, and 2^32 - 1 means none in chown(2). */
const MAX_OWNER = 0xffff_fffe
/** The last second that a Date has. */
const MAX_SECONDS = 8.64e12

/** Device ids whose entries are encoded together. */
const PART = 256

/** The name that a device has before it is given one. */
export const unnamed = (devId: number): string => `${UNNAMED_PREFIX}${devId}`

const externalOriginSchema = z.strictObject({
  /** Absolute, or from the pool's folder. */
  path: z.string().min(1),
  /** Bytes that the file has. */
  size: z.int().min(1),
  /** When it was changed last, in nanoseconds since 1970. */
  modified: z.string().regex(/^\d{1,19}$/),
  /** Bytes of it that show: those that the volume has had all the time. */
  shown: z.int().min(0),
})

/** The external origin of a volume as volumes.json has it. */
export type ExternalOrigin = z.infer<typeof externalOriginSchema>

const fieldsSchema = z.strictObject({
  name: z.string(),
  dev_id: z.int().min(0).max(MAX_DEV_ID),
  /** Bytes. */
  size: z.int().min(0).max(MAX_DEVICE_SIZE),
  /** Device that it was a snapshot of when it was made. */
  origin: z.int().min(0).max(MAX_DEV_ID).nullable(),
  /** Seconds since 1970. */
  created: z.number().min(0).max(MAX_SECONDS).nullable(),
  mode: z.int().min(0).max(0o777),
  uid: z.int().min(0).max(MAX_OWNER),
  gid: z.int().min(0).max(MAX_OWNER),
  /** The name is gone, or has yet to come; the space goes back when nobody has it open. */
  removed: z.boolean(),
  /**
   * The name of the content in streams: an id, and the fingerprint of the mappings. It holds as
   * long as they have that. Left out of a volume that was never sent or received.
   */
  content: z.strictObject({ id: z.guid(), state: z.string().regex(/^[0-9a-f]{32}$/) }).optional(),
  /**
   * The part of a stream that was cut short, of a volume that has no name yet: its space stays
   * until the stream goes on. The names, in streams, of its content and of its base's, and how many
   * bytes are there.
   */
  partial: z
    .strictObject({ content: z.guid(), base: z.guid().nullable(), offset: z.int().min(1) })
    .optional(),
  /** Bytes that it may map at most, and bytes that are kept for it; left out: none. */
  limit: z.int().min(1).max(MAX_DEVICE_SIZE).optional(),
  reserve: z.int().min(1).max(MAX_DEVICE_SIZE).optional(),
  /** Whether its writes wait or fail when the pool is full; left out: as the pool. */
  on_full: z.enum(['queue', 'error']).optional(),
  /** Seconds that its writes wait for space at most, 0: for ever; left out: as the pool's. */
  queue_timeout: z.int().min(0).optional(),
  /** The file that it shows where it maps nothing. Left out of a volume that shows zeros there. */
  external_origin: externalOriginSchema.optional(),
})
const entrySchema = fieldsSchema.refine(
  ({ name, dev_id }) => name === unnamed(dev_id) || whyNotAName(name) === null,
  { path: ['name'], error: 'is not a volume name' },
)
const tableSchema = z.strictObject({
  version: z.literal(1),
  pool: z.string(),
  /** The id in the superblock; null where it has none, or had none when the file was written. */
  uuid: z.guid().toLowerCase().nullable().default(null),
  transaction_id: z.int().min(0),
  volumes: z.array(entrySchema),
  /** The volumes of the last change as they were before: null for one that was not there. */
  undo: z.array(
    z
      .strictObject({
        dev_id: z.int().min(0).max(MAX_DEV_ID),
        before: entrySchema.nullable(),
      })
      .refine(({ dev_id, before }) => before === null || before.dev_id === dev_id, {
        path: ['before', 'dev_id'],
        error: 'is another device',
      }),
  ),
  /** The request that exchanged two names last: done a second time it would undo itself. */
  exchange: z.string().nullable().default(null),
  /** The transaction id that the pool is about to be given, without any change of a volume. */
  jump: z.int().min(0).nullable().default(null),
})

/** A volume as volumes.json has it. */
export type VolumeEntry = z.infer<typeof entrySchema>
type Table = z.infer<typeof tableSchema>

/** The file that a table is kept in. */
export interface TableFile {
  /** Names the file in messages. */
  readonly path: string
  /** The content; null when there is no such file. @throws ThinfsError past `most` bytes */
  read(most: number): string | null
  /** Atomic: a reader finds the old content or the new one, after a power cut too. */
  replace(content: Uint8Array): Promise<void>
}

const SEPARATOR = Buffer.from(',\n  ')

/**
 * The entries of a volumes.json, each also as the file has it.
 *
 * A change encodes the entries of nearby devices anew. Encoding ten thousand for each change would
 * keep requests waiting for 20 ms, joining them for 5 ms.
 */
class VolumeEntries {
  /** By device id divided by PART. */
  readonly #parts = new Map<number, { entries: Map<number, VolumeEntry>; text: Buffer | null }>()

  get(devId: number): VolumeEntry | undefined {
    return this.#parts.get(Math.floor(devId / PART))?.entries.get(devId)
  }

  *values(): Iterable<VolumeEntry> {
    for (const { entries } of this.#parts.values()) yield* entries.values()
  }

  /** @param entry null takes it out */
  put(devId: number, entry: VolumeEntry | null): void {
    const nr = Math.floor(devId / PART)
    let part = this.#parts.get(nr)
    if (part === undefined) {
      if (entry === null) return
      part = { entries: new Map(), text: null }
      this.#parts.set(nr, part)
    }
    if (entry !== null) part.entries.set(devId, entry)
    else part.entries.delete(devId)
    part.text = null
    if (part.entries.size === 0) this.#parts.delete(nr)
  }

  /** The entries, in parts that SEPARATOR stands between. */
  encode(): Buffer[] {
    return Array.from(this.#parts.values(), part => {
      part.text ??= Buffer.from(
        [...part.entries.values()]
          .map(entry => JSON.stringify(entry, null, 1).replaceAll('\n', '\n  '))
          .join(',\n  '),
      )
      return part.text
    })
  }
}

/** A file that is not as the metadata left it: an older copy, or accepted beside other metadata. */
export interface TableDoubt {
  /** The file's transaction id where that is behind the metadata's; else null. */
  behindAt: number | null
}

/** Entries to put in place by device id; null takes one out. */
export type EntryChanges = ReadonlyMap<number, VolumeEntry | null>

export class VolumeTable {
  readonly #file: TableFile
  readonly #pool: PoolIdentity
  readonly #entries = new VolumeEntries()
  #exchange: string | null = null
  #hasOtherId = false
  #doubt: TableDoubt | null = null

  private constructor(file: TableFile, pool: PoolIdentity) {
    this.#file = file
    this.#pool = pool
  }

  /**
   * Reads the file, rolled back if it is one transaction ahead of the pool. A file that is missing
   * means a pool that another program made: no names.
   * @throws POOL_MISMATCH when the file is damaged
   */
  static load(file: TableFile, pool: PoolIdentity): VolumeTable {
    const table = new VolumeTable(file, pool)
    const found = readTable(file)
    if (!found) return table
    table.#hasOtherId = found.uuid !== null && found.uuid !== pool.uuid
    const ahead = aheadOf(found, pool)
    if (ahead < 0 || ahead > 1 || table.#hasOtherId) {
      table.#doubt = { behindAt: ahead < 0 ? found.transaction_id : null }
    }
    for (const entry of found.volumes) table.#entries.put(entry.dev_id, entry)
    // Now, while no requests wait: the first change would encode all.
    table.#entries.encode()
    if (ahead === 1) {
      for (const { dev_id, before } of found.undo) table.#entries.put(dev_id, before)
      mustBeUnique(file.path, table.#entries.values())
    } else {
      table.#exchange = found.exchange
    }
    return table
  }

  /** Why entries may be about other devices than those that have their ids; null: they are not. */
  get doubt(): TableDoubt | null {
    return this.#doubt
  }

  /**
   * Puts what `adapt` makes of an entry in its place; null leaves it out, as that of a device which
   * another program deleted. Durable with the next change.
   */
  adapt(adapt: (entry: VolumeEntry) => VolumeEntry | null): void {
    for (const entry of this.#entries.values()) {
      const adapted = adapt(entry)
      if (adapted !== entry) this.#entries.put(entry.dev_id, adapted)
    }
  }

  get(devId: number): VolumeEntry | undefined {
    return this.#entries.get(devId)
  }

  /** The request that exchanged two names last, null when that is not known. */
  get exchange(): string | null {
    return this.#exchange
  }

  /**
   * Whether the file has the id of another pool than ours, which takes its place with the next
   * change.
   */
  get hasOtherId(): boolean {
    return this.#hasOtherId
  }

  /**
   * Puts changes into the file, before the pool commits `transactionId`.
   * @param exchange the request, when it exchanges names
   * @param jump the transaction id that the pool gets next, when that is not the one after this
   * @returns takes them back in memory; the file is right again with the next change, or rolled
   *   back
   */
  async change(
    changes: EntryChanges,
    transactionId: number,
    exchange = this.#exchange,
    jump: number | null = null,
  ): Promise<() => void> {
    const exchangeBefore = this.#exchange
    const undo = [...changes.keys()].map(dev_id => ({
      dev_id,
      before: this.#entries.get(dev_id) ?? null,
    }))
    const revert = (): void => {
      for (const { dev_id, before } of undo) this.#entries.put(dev_id, before)
      this.#exchange = exchangeBefore
    }
    this.#exchange = exchange
    for (const [devId, entry] of changes) this.#entries.put(devId, entry)
    const table = {
      version: 1 as const,
      pool: this.#pool.name,
      uuid: this.#pool.uuid,
      transaction_id: transactionId,
      undo,
      exchange,
      jump,
    }
    const text = encodeTable(table, this.#entries.encode())
    if (text.length > MAX_FILE_SIZE) {
      revert()
      const detail = `${this.#file.path} may have ${MAX_FILE_SIZE} bytes: too many volumes`
      throw new ThinfsError('BAD_ARGUMENT', detail, { errno: 'EFBIG' })
    }
    try {
      await this.#file.replace(text)
    } catch (err) {
      revert()
      throw isLost(err) ? err : ioError(this.#file.path, err)
    }
    this.#hasOtherId = false
    return revert
  }
}

/**
 * The file's text, as JSON.stringify(table, null, 1) makes it, the volumes last.
 * @param volumes of `VolumeEntries`
 */
function encodeTable(table: Omit<Table, 'volumes'>, volumes: readonly Buffer[]): Buffer {
  const rest = JSON.stringify(table, null, 1).slice(0, -'\n}'.length)
  const begin = volumes.length === 0 ? '[' : '[\n  '
  const parts: Uint8Array[] = [Buffer.from(`${rest},\n "volumes": ${begin}`)]
  for (const [nr, part] of volumes.entries()) {
    if (nr > 0) parts.push(SEPARATOR)
    parts.push(part)
  }
  parts.push(Buffer.from(volumes.length === 0 ? ']\n}\n' : '\n ]\n}\n'))
  return Buffer.concat(parts)
}

/** The pool that a volumes.json is held against. */
export interface PoolIdentity {
  /** Its name in pool.yaml. */
  name: string
  /** Of its superblock when the pool is opened. */
  transactionId: number
  /** The id in its superblock; null where that has none. */
  uuid: string | null
}

/**
 * Whether a volumes.json is that of the pool: by the ids of both, and by the rules of LVM and
 * Docker, which refuse a pool whose transaction id is not the one that they have noted.
 * @returns null when it is, or is one ahead, as a crash leaves it. An error: it is that of another
 *   pool, or the metadata is older than it. A warning: the metadata has lost its id, or the file is
 *   behind, for another program went on.
 */
export function whyNotOf(path: string, table: Table, pool: PoolIdentity): CheckProblem | null {
  if (table.uuid !== null && pool.uuid !== null && table.uuid !== pool.uuid) {
    const message = `${path}: of the pool ${table.uuid}, the metadata is of ${pool.uuid}`
    return { severity: 'error', message, code: 'POOL_MISMATCH' }
  }
  const ahead = aheadOf(table, pool)
  const both = `${path}: transaction ${table.transaction_id}, the metadata is at ${pool.transactionId}`
  if (table.pool !== pool.name) {
    const message = `${path}: of the pool "${table.pool}", pool.yaml has the pool "${pool.name}"`
    return { severity: 'error', message, code: 'POOL_MISMATCH' }
  }
  if (ahead > 1) {
    const message = `${both}: the metadata is older than the names, as a copy that was put back is`
    return { severity: 'error', message, code: 'POOL_MISMATCH' }
  }
  if (lacksId(table, pool)) {
    const message =
      `${path}: of the pool ${table.uuid}, the metadata has no id: thin_restore or thin_repair made it, ` +
      'or it is of another pool'
    return { severity: 'warning', message }
  }
  if (ahead >= 0) return null
  const message = `${both}: another program went on, names and sizes may be older than the volumes`
  return { severity: 'warning', message }
}

/** By how many transactions a file is ahead of the metadata. */
const aheadOf = ({ transaction_id, jump }: Table, { transactionId }: PoolIdentity): number =>
  jump === transactionId ? 0 : transaction_id - transactionId

/** Whether metadata without an id is in the place of metadata that had one. */
const lacksId = (table: Table, pool: PoolIdentity): boolean =>
  table.uuid !== null && pool.uuid === null

/**
 * Refuses a volumes.json that is not that of the pool. Nothing is changed.
 * @param warn is told of one that is behind, and of metadata that has lost its id
 * @returns whether the metadata may be of another pool all the same
 * @throws POOL_MISMATCH also when it is damaged; IO_ERROR
 */
export function mustBeOf(
  file: TableFile,
  pool: PoolIdentity,
  warn: (message: string) => void,
): boolean {
  const table = readTable(file)
  const problem = table === null ? null : whyNotOf(file.path, table, pool)
  if (problem?.severity === 'warning') warn(problem.message)
  if (problem?.severity !== 'error') return table !== null && lacksId(table, pool)
  const cure =
    'put the files back that belong together; or, where they do, mount with --accept-metadata'
  throw new ThinfsError('POOL_MISMATCH', `${problem.message}; ${cure}`)
}

/** The problems of a volumes.json, for `thinfs check`. */
export function checkTable(
  path: string,
  table: Table,
  pool: PoolIdentity,
  devices: Set<number>,
): CheckProblem[] {
  const problems: CheckProblem[] = []
  const problem = whyNotOf(path, table, pool)
  if (problem !== null) problems.push(problem)
  // A device that another program has deleted since takes its name along.
  const ahead = aheadOf(table, pool)
  for (const { name, dev_id } of table.volumes) {
    if (devices.has(dev_id) || ahead === 1) continue
    const message = `${path}: ${name}: the pool has no device ${dev_id}`
    if (ahead < 0) problems.push({ severity: 'warning', message })
    else problems.push({ severity: 'error', message, code: 'POOL_MISMATCH' })
  }
  return problems
}

/** @returns null when there is no such file. @throws POOL_MISMATCH when it is damaged; IO_ERROR */
export function readTable(file: TableFile): Table | null {
  const { path } = file
  let text: string | null
  try {
    text = file.read(MAX_FILE_SIZE)
  } catch (err) {
    throw err instanceof ThinfsError ? damaged(path, err.message) : ioError(path, err)
  }
  if (text === null) return null
  let json: unknown
  try {
    json = JSON.parse(text)
  } catch (err) {
    throw damaged(path, `not JSON: ${(err as Error).message}`)
  }
  const parsed = tableSchema.safeParse(json)
  if (!parsed.success) {
    const issue = parsed.error.issues[0]!
    throw damaged(path, `${issue.path.join('.')}: ${issue.message}`)
  }
  mustBeUnique(path, parsed.data.volumes)
  return parsed.data
}

/** @throws POOL_MISMATCH when two entries have one device or one name */
function mustBeUnique(path: string, entries: Iterable<VolumeEntry>): void {
  const names = new Set<string>()
  const ids = new Set<number>()
  for (const { name, dev_id, removed } of entries) {
    if (ids.has(dev_id)) throw damaged(path, `device ${dev_id} is there twice`)
    if (!removed && names.has(name)) throw damaged(path, `the name ${name} is there twice`)
    ids.add(dev_id)
    if (!removed) names.add(name)
  }
}

const damaged = (path: string, what: string): ThinfsError =>
  new ThinfsError('POOL_MISMATCH', `${path}: ${what}`)
