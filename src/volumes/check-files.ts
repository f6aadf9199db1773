import { checkMetadata } from '../metadata/index.js'
import type { Store } from '../storage/index.js'
import type { CheckReport } from './admin.js'
import { checkTable, type TableFile } from './volume-table.js'

/** Verifies metadata as the last commit left it, and the volumes.json that goes with it. */
export function checkFiles(metadata: Store, table: TableFile): CheckReport {
  const { transactionId, devices, ...report } = checkMetadata(metadata)
  // Without a readable superblock there is nothing to hold the names against.
  const wrong = transactionId === null ? [] : checkTable(table, transactionId, new Set(devices))
  return {
    ...report,
    devices: devices.length,
    problems: [
      ...report.problems,
      ...wrong.map(message => ({ severity: 'error' as const, message })),
    ],
  }
}
