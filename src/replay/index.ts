/**
 * Recordings: what is in their files, the states that they lead to, and dm-log-writes' format of
 * them.
 */
export { exportLogWrites, MAX_MARK } from './log-writes.js'
export { RECORD_ENTRY, RECORDED, type RecordedKind, recordingFiles } from './record-format.js'
export { type RecordEntry, RecordReader } from './record-reader.js'
export {
  apply,
  applyUnflushed,
  flushMoments,
  type Moment,
  momentAt,
  type ReplayTarget,
} from './replay.js'
export { ReplayFile } from './replay-file.js'
