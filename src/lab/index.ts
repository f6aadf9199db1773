/** The crash lab: recording what changes a volume, replaying it, and faults in what its users see. */
export { Lab, type LabOptions } from './lab.js'
export { exportLogWrites } from './log-writes.js'
export { RECORD_ENTRY } from './record-format.js'
export { RecordReader } from './record-reader.js'
export {
  apply,
  applyUnflushed,
  flushMoments,
  type Moment,
  momentAt,
  type ReplayTarget,
} from './replay.js'
export { ReplayFile } from './replay-file.js'
