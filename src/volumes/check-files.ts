import { ThinfsError } from '../base/index.js'
import { checkMetadataInSteps } from '../metadata/index.js'
import type { Store } from '../storage/index.js'
import type { CheckReport } from './admin.js'
import { checkData, type DataCheck } from './check-data.js'
import { checkTable, readTable, type TableFile } from './volume-table.js'

/**
 * Verifies metadata as the last commit left it, and the volumes.json that goes with it, in steps of
 * some milliseconds. The first reads superblock and volumes.json; what the superblock leads to must not
 * change until the last.
 */
export function* checkFiles(metadata: Store, file: TableFile): Generator<void, CheckReport, void> {
  const steps = checkMetadataInSteps(metadata)
  let step = steps.next()
  const table = tryRead(file)
  for (; !step.done; step = steps.next()) yield
  const { transactionId, devices, ...report } = step.value
  // Without a readable superblock there is nothing to hold the names against.
  const wrong =
    table instanceof ThinfsError
      ? [table.message]
      : transactionId === null || table === null
        ? []
        : checkTable(file.path, table, transactionId, new Set(devices))
  return {
    ...report,
    devices: devices.length,
    problems: [
      ...report.problems,
      ...wrong.map(message => ({ severity: 'error' as const, message })),
    ],
    data: null,
  }
}

function tryRead(file: TableFile) {
  try {
    return readTable(file)
  } catch (err) {
    if (err instanceof ThinfsError) return err
    throw err
  }
}

export const isDamaged = ({ problems }: CheckReport): boolean =>
  problems.some(({ severity }) => severity === 'error')

/** A report with what the deep part of the check finds. */
export async function withData(report: CheckReport, check: DataCheck): Promise<CheckReport> {
  const [data, problems] = await checkData(check)
  return { ...report, problems: [...report.problems, ...problems], data }
}
