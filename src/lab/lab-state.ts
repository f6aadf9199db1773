/**
 * lab.json: what is injected, for the next engine of the same mount. It is replaced as a whole before a
 * command is answered.
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
  injections: z.array(
    z.strictObject({
      ...volumeShape,
      read_errors: ranges,
      write_errors: ranges,
      ignore_flushes: z.boolean(),
      latency_ms: z.int().min(0),
    }),
  ),
})

export type LabState = z.infer<typeof stateSchema>
export type StoredInjection = LabState['injections'][number]

export const noState = (): LabState => ({ version: 1, injections: [] })

/**
 * @returns what the file says; nothing is going on where there is none
 * @throws BAD_ARGUMENT saying what is wrong with it, IO_ERROR
 */
export function readState(file: AtomicFile): LabState {
  const text = file.read(MAX_FILE_SIZE)
  if (text === null) return noState()
  let json: unknown
  try {
    json = JSON.parse(text)
  } catch (err) {
    throw new ThinfsError('BAD_ARGUMENT', `${file.path}: not JSON: ${(err as Error).message}`)
  }
  const parsed = stateSchema.safeParse(json)
  if (parsed.success) return parsed.data
  const issue = parsed.error.issues[0]!
  throw new ThinfsError('BAD_ARGUMENT', `${file.path}: ${issue.path.join('.')}: ${issue.message}`)
}

export const encodeState = (state: LabState): string => `${JSON.stringify(state, null, 1)}\n`
