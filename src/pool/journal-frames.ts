/**
 * The frames of the journal: a header, and a payload that has to be whole.
 *
 * BASE and CLEAN frames carry the identity of a superblock: its hash, which tells whether it is the
 * one that is found, and its age, which tells whether another is newer. docs/FORMAT.md#journal
 */
import { createHash } from 'node:crypto'
import { crc32c } from '@node-rs/crc32'
import { layout, ThinfsError, viewOf } from '../base/index.js'
import { SUPERBLOCK } from '../metadata/index.js'

export const FRAME = layout('JournalFrame', 16, {
  magic: [0, 'u32', 'FRAME_MAGIC'],
  kind: [4, 'u32', '1 BASE, 2 CHANGES, 3 CLEAN'],
  length: [8, 'u32', 'bytes of the payload that follows'],
  csum: [12, 'u32', 'CRC-32C of the payload'],
})
/** Payload of BASE and CLEAN frames: which superblock, and who had it when. */
export const IDENTITY = layout('JournalIdentity', 96, {
  bootId: [0, 'bytes:36', 'boot of the machine, from proc(5)'],
  hash: [36, 'bytes:32', 'SHA-256 of the superblock'],
  transactionId: [68, 'u64', 'of the superblock'],
  time: [76, 'u32', 'of the superblock'],
  generation: [80, 'u64', 'commits up to the superblock'],
  labelled: [88, 'u64', 'the generation that the label of the data had by then, at least'],
})

const FRAME_MAGIC = 0x4a_6e_68_74
/** Kinds of frames. */
export const BASE = 1
export const CHANGES = 2
export const CLEAN = 3
const HASH_AT = IDENTITY.at.hash
const HASH_END = IDENTITY.at.transactionId
const SUPERBLOCK_END = IDENTITY.at.generation

/**
 * The frames up to the first that is torn or damaged: what came after it was never replied to.
 * @throws POOL_MISMATCH for a sound frame of a kind that is not known: a later thinfs wrote it
 */
export function* frames(file: Buffer): Generator<{ kind: number; payload: Buffer }> {
  const view = viewOf(file)
  for (let at = 0; at + FRAME.size <= file.length; ) {
    const { magic, kind, length, csum } = FRAME.read(view, at)
    const payload = file.subarray(at + FRAME.size, at + FRAME.size + length)
    if (magic !== FRAME_MAGIC || payload.length !== length || crc32c(payload) !== csum) return
    // A header of which a power cut left the beginning alone is sound by accident.
    if (kind < BASE) return
    if (kind > CLEAN) {
      throw new ThinfsError('POOL_MISMATCH', `the journal has a frame of kind ${kind}`)
    }
    if (kind !== CHANGES && length !== IDENTITY.size) return
    yield { kind, payload }
    at += FRAME.size + length
  }
}

export function frame(kind: number, payload: Buffer): Buffer {
  const out = Buffer.concat([Buffer.alloc(FRAME.size), payload])
  writeFrame(out, kind, payload.length)
  return out
}

/** Fills in the header of a frame whose payload is in place behind it. */
export function writeFrame(out: Buffer, kind: number, length: number): void {
  const csum = crc32c(out.subarray(FRAME.size, FRAME.size + length))
  FRAME.write(viewOf(out), 0, { magic: FRAME_MAGIC, kind, length, csum })
}

/**
 * The identity of a superblock, in this boot.
 * @param superblock its 4096 bytes
 */
export function identityOf(
  superblock: Uint8Array,
  bootId: string,
  age: { generation: number; labelled: number },
): Buffer {
  const identity = Buffer.alloc(IDENTITY.size)
  identity.write(bootId.padEnd(36).slice(0, 36), IDENTITY.at.bootId)
  createHash('sha256').update(superblock).digest().copy(identity, HASH_AT)
  const { transactionId, time } = SUPERBLOCK.read(viewOf(superblock), 0)
  IDENTITY.write(viewOf(identity), 0, { transactionId, time, ...age })
  return identity
}

export const sameBoot = (one: Buffer, other: Buffer): boolean =>
  one.compare(other, 0, HASH_AT, 0, HASH_AT) === 0

export const sameHash = (one: Buffer, other: Buffer): boolean =>
  one.compare(other, HASH_AT, HASH_END, HASH_AT, HASH_END) === 0

/** Whether `one` is of a superblock that can only have come after that of `other`. */
export function isNewer(one: Buffer, other: Buffer): boolean {
  const [a, b] = [ageOf(one), ageOf(other)]
  if (a.transactionId < b.transactionId || a.time < b.time) return false
  return a.transactionId > b.transactionId || a.time > b.time
}

export const ageOf = (identity: Buffer) => IDENTITY.read(viewOf(identity), 0)

/** Whether both are of one superblock in one boot, whatever commits there were up to it. */
export const sameSuperblock = (one: Buffer, other: Buffer): boolean =>
  one.compare(other, 0, SUPERBLOCK_END, 0, SUPERBLOCK_END) === 0
