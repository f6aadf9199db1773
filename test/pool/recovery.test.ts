import t from 'tap'
import { bytes, type ErrorCode, ThinfsError } from '../../src/base/index.js'
import type { ThinMetadata } from '../../src/metadata/index.js'
import { CHANGE } from '../../src/pool/journal-changes.js'
import { replayChanges } from '../../src/pool/recovery.js'

t.test('what a replay fails of is told as what it is', async t => {
  const change = Buffer.alloc(CHANGE.size)
  CHANGE.write(new DataView(change.buffer, change.byteOffset), 0, { kind: 2, devId: 1, second: 9 })
  for (const [cause, told] of [
    ['NO_METADATA_SPACE', 'NO_METADATA_SPACE'],
    ['IO_ERROR', 'IO_ERROR'],
    ['METADATA_CORRUPT', 'POOL_MISMATCH'],
  ] satisfies [ErrorCode, ErrorCode][]) {
    const metadata = {
      dataBlockSectors: 8,
      hasDevice: () => true,
      mappings: {
        removeRange() {
          throw new ThinfsError(cause, 'metadata')
        },
      },
    }
    const noted = { extended: new Map([[1, bytes(0)]]) as never, handles: null }
    const replay = () => replayChanges([change], metadata as unknown as ThinMetadata, noted)
    t.throws(replay, { code: told }, cause)
  }
})
