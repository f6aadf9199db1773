import * as z from 'zod'
import { ThinfsError } from '../base/index.js'

const tokenSchema = z.strictObject({
  /** The name, in streams, of the content that is being received. */
  content: z.guid(),
  /** The same of the volume that the stream goes on from; null for a full one. */
  base: z.guid().nullable(),
  /** Bytes of the volume that are there. */
  offset: z.int().min(1),
})

/** The place at which a stream that was cut short is to go on. */
export type ResumePoint = z.infer<typeof tokenSchema>

/** Text that passes through a shell, and an e-mail, as it is. */
export const tokenOf = ({ content, base, offset }: ResumePoint): string =>
  Buffer.from(JSON.stringify({ content, base, offset })).toString('base64url')

/** @throws BAD_ARGUMENT for what `tokenOf` has not made */
export function parseToken(token: string): ResumePoint {
  try {
    return tokenSchema.parse(JSON.parse(Buffer.from(token, 'base64url').toString()))
  } catch (err) {
    const what = `${token}: no token of thinfs receive --token`
    throw new ThinfsError('BAD_ARGUMENT', what, { cause: err })
  }
}
