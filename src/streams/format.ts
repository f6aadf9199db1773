/**
 * A volume as a stream: a magic number, then records. docs/FORMAT.md#streams.
 *
 * Offsets ascend, so that a receiver needs no more than a record in memory. Each record has a
 * checksum; the last one has the SHA-256 of all bytes before it, so that no record can be missing,
 * or be there twice. A checkpoint has that of the bytes before it: there a receiver may stop, and
 * another stream, of version 2, goes on.
 */
import { crc32c } from '@node-rs/crc32'
import * as z from 'zod'
import { KIB, layout, MAX_DEVICE_SIZE, MIB } from '../base/index.js'

/** As PNG's, it does not survive what changes line ends, nor a terminal. */
export const MAGIC = Buffer.from('thinfs stream\r\n\x1a', 'latin1')

export const RECORD_HEAD = layout('StreamRecord', 32, {
  csum: [0, 'u32', 'CRC-32C of the rest of the head and the payload'],
  kind: [4, 'u32', '1 header, 2 data, 3 discard, 4 end, 5 checkpoint'],
  encoding: [8, 'u32', 'of the payload: 0 as it is, 1 one zstd frame'],
  stored: [12, 'u32', 'bytes of payload that follow'],
  offset: [
    16,
    'u64',
    'first byte of the volume that it is about, checkpoint: that follows; end: records before it',
  ],
  length: [24, 'u64', 'bytes of the volume that it is about'],
})

export const KIND = { header: 1, data: 2, discard: 3, end: 4, checkpoint: 5 } as const
export const PLAIN = 0
export const ZSTD = 1

/** Bytes of a stream after which it has a checkpoint. */
export const CHECKPOINT_PERIOD = 32 * MIB
/** Bytes of a volume that a record has at most. */
export const MAX_DATA = MIB
/** Bytes of payload that a record has at most: zstd adds little to what it cannot compress. */
export const MAX_STORED = MIB + 64 * KIB

const headerSchema = z.object({
  /** 2 where `resume` is more than 0: who does not know that must not take it for all. */
  version: z.literal([1, 2]),
  /** Name of the volume. */
  name: z.string(),
  /** Its size in bytes. */
  size: z.int().min(0).max(MAX_DEVICE_SIZE),
  /** The name of its content in streams; null for one that nothing can go on from. */
  content: z.guid().nullable(),
  /** The volume that the stream goes on from: its name, and what streams call its content. */
  base: z.object({ name: z.string(), content: z.guid() }).nullable(),
  /** Bytes of the volume that another stream had before it was cut short. */
  resume: z.int().min(0).max(MAX_DEVICE_SIZE).default(0),
})

/** The payload of the first record, as JSON. A reader takes a header with more fields as well. */
export type StreamHeader = z.infer<typeof headerSchema>

/** @returns null for what is no header of version 1 or 2 */
export function parseHeader(payload: Buffer): StreamHeader | null {
  try {
    const header = headerSchema.parse(JSON.parse(payload.toString()))
    return (header.version === 2) === header.resume > 0 ? header : null
  } catch {
    return null
  }
}

export interface RecordHead {
  kind: number
  encoding: number
  offset: number
  length: number
}

/** The 32 bytes before a payload. */
export function encodeHead(head: RecordHead, payload: Uint8Array): Buffer {
  const bytes = Buffer.alloc(RECORD_HEAD.size)
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length)
  RECORD_HEAD.write(view, 0, { ...head, stored: payload.length, csum: 0 })
  RECORD_HEAD.write(view, 0, { ...RECORD_HEAD.read(view, 0), csum: checksumOf(bytes, payload) })
  return bytes
}

export const checksumOf = (head: Uint8Array, payload: Uint8Array): number =>
  crc32c(payload, crc32c(head.subarray(RECORD_HEAD.at.kind)))
