/**
 * lab.json: what is injected, for the next engine of the same mount, and what recordings there are.
 * It is replaced as a whole before a command is answered.
 */
import * as z from 'zod'
import { ThinfsError } from '../base/index.js'
import type { AtomicFile } from '../storage/index.js'

/** A file larger than this is not ours. */
const MAX_FILE_SIZE = 16 * 1024 * 1024

const bytes = z.int().min(0)
const ranges = z.array(z.tuple([bytes, bytes]))

/** A volume, and which of those that had the same device id one after the other. */
const volumeShape = { dev_id: z.int().min(0), generation: z.int().min(0) }

const stateSchema = z.strictObject({
  version: z.literal(1),
  /** The id in the pool's superblock; null where it has none. */
  pool: z.string().nullable(),
  injections: z.array(
    z.strictObject({
      ...volumeShape,
      read_errors: ranges,
      write_errors: ranges,
      ignore_flushes: z.boolean(),
      latency_ms: z.int().min(0),
    }),
  ),
  recordings: z.array(
    z.strictObject({
      /** Its files have it in their names. */
      id: z.int().min(1),
      ...volumeShape,
      /** The name that it had when recording began. */
      volume: z.string(),
      base: z.strictObject(volumeShape),
      /** The boot of the machine in which it began. */
      boot: z.string(),
      /** Seconds since 1970. */
      started: z.number(),
      /** Why it has ended; null: it goes on. */
      ended: z.string().nullable(),
      lost: z.boolean(),
    }),
  ),
})

export type LabState = z.infer<typeof stateSchema>
export type StoredInjection = LabState['injections'][number]
export type StoredRecording = LabState['recordings'][number]

export const noState = (pool: string | null): LabState => ({
  version: 1,
  pool,
  injections: [],
  recordings: [],
})

/**
 * @param pool the id in the pool's superblock
 * @returns what the file says; nothing is going on where there is none
 * @throws BAD_ARGUMENT saying what is wrong with it, IO_ERROR
 */
export function readState(file: AtomicFile, pool: string | null): LabState {
  const text = file.read(MAX_FILE_SIZE)
  if (text === null) return noState(pool)
  let json: unknown
  try {
    json = JSON.parse(text)
  } catch (err) {
    throw new ThinfsError('BAD_ARGUMENT', `${file.path}: not JSON: ${(err as Error).message}`)
  }
  const parsed = stateSchema.safeParse(json)
  if (parsed.success) {
    if (parsed.data.pool === pool) return parsed.data
    throw new ThinfsError('BAD_ARGUMENT', `${file.path}: of another pool`)
  }
  const issue = parsed.error.issues[0]!
  throw new ThinfsError('BAD_ARGUMENT', `${file.path}: ${issue.path.join('.')}: ${issue.message}`)
}

export const encodeState = (state: LabState): string => `${JSON.stringify(state, null, 1)}\n`
