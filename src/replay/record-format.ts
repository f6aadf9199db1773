/** A recording as its two files have it: a row of entries, and the bytes that they lead to. */
import { layout } from '../base/index.js'

/** One entry of a recording's log, little-endian. docs/FORMAT.md#recordings */
export const RECORD_ENTRY = layout('RecordEntry', 32, {
  kind: [0, 'u32', '1 write, 2 discard, 3 zero, 4 flush, 5 mark, 6 flush that was ignored'],
  pad0: [4, 'u32', 'zero'],
  offset: [8, 'u64', 'write, discard, zero: first byte of the volume'],
  length: [16, 'u64', 'write, discard, zero: bytes; mark: bytes of its name'],
  at: [24, 'u64', 'write, mark: byte of the data file; flush: entries that it made durable'],
})

/** Kinds of entries. */
export const RECORDED = {
  write: 1,
  discard: 2,
  zero: 3,
  flush: 4,
  mark: 5,
  ignoredFlush: 6,
} as const

export type RecordedKind = (typeof RECORDED)[keyof typeof RECORDED]

/** The files of a recording, in the folder of pool.yaml. */
export const recordingFiles = (id: number): { log: string; data: string } => ({
  log: `record-${id}.log`,
  data: `record-${id}.data`,
})
